"""A recipe: a model, data and a list of stages. Defaults < file < environment < command line.

model: embedded
data: {world: frontdesk}
stages:
  - sft: {epochs: 2}
  - ppo: {id: first, kl_target: 6}      # overridden by  first.kl_target=4
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from assay.config import Config, Fault, check, did_you_mean, faults_error
from assay.data.config import FileData
from assay.doctor.config import DoctorConfig
from assay.document import Document, KeyPath, dotted, read_file, split_override, write_yaml
from assay.errors import ConfigError
from assay.models.config import ModelConfig
from assay.pipeline import graph
from assay.stages.config import AnyStage
from assay.worlds.config import WorldData

DEFAULT = "sandbox"
PACKAGE = Path(__file__).parents[1]
ENVIRONMENT_PREFIX = "ASSAY_"
Override = tuple[str, tuple[str, ...], Any]
"""Where it was written, the key, the value."""


def _one_key(stage: Any) -> Any:
    """`sft: {epochs: 2}` → {"kind": "sft", "epochs": 2}."""
    if isinstance(stage, str):
        return {"kind": stage}
    if not isinstance(stage, dict):
        return stage
    if len(stage) != 1:
        raise ValueError(f"a stage is one `kind: {{settings}}`, not the keys {', '.join(stage)}; are they indented?")
    ((kind, settings),) = stage.items()
    if not isinstance(settings, dict | None):
        raise ValueError(f"the settings of {kind} must be a map, e.g. `{kind}: {{}}`")
    return {**(settings or {}), "kind": kind}


def _world_or_files(data: Any) -> str:
    is_world = isinstance(data, WorldData) or (isinstance(data, dict) and "world" in data)
    return "<world>" if is_world else "<files>"


def _not_both(data: Any) -> Any:
    if isinstance(data, dict) and "world" in data and "path" in data:
        raise ValueError("has both `world` and `path`; keep one (on the command line: 'data={path: …}')")
    return data


def _known_device(name: str) -> str:
    if re.fullmatch(r"mps(:\d+)?", name):
        raise ValueError("mps has no float64, in which tokens are drawn; set device to cpu")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError(f'must be auto, cpu, cuda or cuda:1, not "{name}"')
    return name


Device = Annotated[str, AfterValidator(_known_device)]
Data = Annotated[
    Annotated[WorldData, Tag("<world>")] | Annotated[FileData, Tag("<files>")],
    Discriminator(_world_or_files),
    BeforeValidator(_not_both),
]
Stage = Annotated[AnyStage, BeforeValidator(_one_key)]
Model = Annotated[ModelConfig, BeforeValidator(lambda value: {"path": value} if isinstance(value, str) else value)]


class Recipe(Config):
    """What `assay run` runs."""

    model: Model = Field(
        ModelConfig(path="embedded", template="chat"),
        description="base model, as a path or a map: embedded, a local folder, a hub id or package:NAME",
    )
    data: Data = Field(description="`world: NAME` for simulated humans, or `path: …` for files")
    stages: list[Stage] = Field(min_length=1, description="stages in order, each `kind: {settings}`")
    seed: int = Field(0, ge=0, description="seed of everything random in the run")
    runs_dir: str = Field("runs", min_length=1, description="folder of runs and artifacts")
    device: Device = Field("auto", description="auto, cpu, cuda or cuda:1")
    track: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default_factory=list, description="where metrics go besides metrics.jsonl"
    )

    doctor: DoctorConfig = Field(DoctorConfig(), description="what happens when a stage goes wrong")

    @property
    def corrects(self) -> bool:
        """Whether monitors may change how a stage trains, and with it the weights."""
        return self.doctor.act == "correct"

    def resolved(self) -> dict[str, Any]:
        """Every setting with its value, in the form a recipe file has."""
        plain = self.model_dump(mode="json")
        plain["stages"] = [{stage.pop("kind"): stage} for stage in plain["stages"]]
        return plain

    def yaml(self) -> str:
        """The resolved recipe as a file that gives the same recipe again."""
        return write_yaml(self.resolved())


@dataclass(frozen=True, slots=True)
class NamedRecipe:
    """A valid recipe, and what it is called."""

    name: str
    recipe: Recipe
    graph: graph.Graph

    @property
    def run_dir(self) -> Path:
        """<runs_dir>/<name>-<hash8>: the same settings give the same folder, so that running again resumes."""
        asked_only = {"runs_dir", "track", "device"} | ({"doctor"} if not self.recipe.corrects else set())
        facts = self.recipe.model_dump(mode="json", exclude=asked_only)
        digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=4).hexdigest()
        return Path(self.recipe.runs_dir) / f"{self.name}-{digest}"


@dataclass(frozen=True, slots=True)
class Draft:
    """A recipe as it is written, overrides included: what it comes to, or every fault that keeps it from that."""

    path: Path
    document: Document
    named: NamedRecipe | None
    faults: Sequence[Fault] = ()

    def label(self, path: KeyPath) -> str:
        """How the user calls a key."""
        return _label(self.document, path)


def load_recipe(
    reference: str | None = None, overrides: Sequence[str] = (), environment: Mapping[str, str] = os.environ
) -> NamedRecipe:
    """The recipe at a path or of a shipped name, with overrides; ConfigError names every fault and its place."""
    written = draft(reference, overrides, environment)
    if written.named is None:
        raise faults_error(written.faults)
    return written.named


def draft(
    reference: str | None = None, overrides: Sequence[str] = (), environment: Mapping[str, str] = os.environ
) -> Draft:
    """`load_recipe`, with faults as data; ConfigError only where there is no recipe, or no YAML in it."""
    path = find_recipe(reference)
    document = read_file(path)
    _spell_out(document)
    faults = _apply(document, _from_environment(document, environment))
    faults += _apply(document, (("command line", *split_override(text)) for text in overrides))
    recipe, more = check(Recipe, document, name=lambda key: _label(document, key))
    if recipe is None or faults:
        return Draft(path, document, None, faults + more)
    links, broken = graph.link(recipe.model.path, recipe.stages)
    paths = [("stages", fault.stage, recipe.stages[fault.stage].kind, fault.field) for fault in broken]
    faults = [
        Fault(document.origin(path), f"{_label(document, path)}: {fault.what}", fault.hint)
        for path, fault in zip(paths, broken, strict=True)
    ] or _unjudged(recipe, document)
    return Draft(path, document, None if faults else NamedRecipe(_name(path), recipe, links), faults)


def _unjudged(recipe: Recipe, document: Document) -> list[Fault]:
    """Evaluations that nothing can decide: files know no truth, and no judge is named."""
    if isinstance(recipe.data, WorldData):
        return []
    paths: list[KeyPath] = [
        ("stages", number, "evaluate")
        for number, stage in enumerate(recipe.stages)
        if stage.kind == "evaluate" and stage.judge is None
    ]
    what, hint = "nothing judges the policies", "name a reward stage: judge: reward"
    return [Fault(document.origin(path), f"{_label(document, path)}: {what}", hint) for path in paths]


def shipped() -> dict[str, Path]:
    """Recipes by name: ./recipes first, then those of the package."""
    folders = [Path("recipes"), PACKAGE / "recipes", PACKAGE.parents[1] / "recipes"]
    found = [file for folder in reversed(folders) if folder.is_dir() for file in sorted(folder.glob("*.yaml"))]
    return {file.stem: file for file in found}


def headline(path: Path) -> str:
    """What a recipe says about itself: the first sentence of the comment at its top, above any command there."""
    lines = path.read_text(encoding="utf-8").splitlines()
    said = " ".join(line[2:] for line in itertools.takewhile(re.compile(r"# \S").match, lines))
    sentence = said.partition(". ")[0].rstrip(".:")
    return f"{sentence}." if sentence else ""


def find_recipe(reference: str | None) -> Path:
    """A path, or the file of a shipped name; the default recipe for None."""
    path, known = Path(reference or DEFAULT), shipped()
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file():
        return path
    if path.name in known and path.parent == Path():
        return known[path.name]
    hint = did_you_mean(path.stem, known) if known else "give the path of a recipe file"
    raise ConfigError(f"there is no recipe {str(reference or DEFAULT)!r}", hint=hint)


def _name(path: Path) -> str:
    """The file's name; for the recipe.yaml of a run, the name that run had."""
    parent = path.absolute().parent.name
    return re.sub(r"-[0-9a-f]{8}$", "", parent) if path.stem == "recipe" else path.stem


def _spell_out(document: Document) -> None:
    """Short forms in full, so that overrides find the map they go into: `model: x`, `- sft`, `- sft:`."""
    if isinstance(document.data.get("model"), str):
        document.set(("model",), {"path": document.data["model"]}, document.origin(("model",)))
    stages = document.data.get("stages")
    for index, stage in enumerate(stages if isinstance(stages, list) else []):
        if isinstance(stage, str):
            document.set(("stages", index), {stage: {}}, document.origin(("stages", index)))
        elif isinstance(stage, dict) and len(stage) == 1 and None in stage.values():
            document.set(("stages", index, next(iter(stage))), {}, document.origin(("stages", index)))


def _stages(document: Document) -> Iterator[tuple[str, KeyPath]]:
    """(id, path) of every stage that the document spells well enough to have an id."""
    stages = document.data.get("stages")
    for index, stage in enumerate(stages if isinstance(stages, list) else []):
        if isinstance(stage, dict) and len(stage) == 1:
            ((kind, settings),) = stage.items()
            name = settings.get("id") if isinstance(settings, dict) else None
            yield str(name or kind), ("stages", index, kind)


def _apply(document: Document, overrides: Iterable[Override]) -> list[Fault]:
    """Put overrides into the document; returns a fault for each that addresses nothing."""
    stages, faults = dict(_stages(document)), []
    for origin, key, value in overrides:
        head, *rest = key
        if key == ("model",) and isinstance(value, str):
            document.set(("model", "path"), value, origin)
        elif head in Recipe.model_fields:
            document.set(key, value, origin)
        elif head in stages and rest:
            document.set((*stages[head], *rest), value, origin)
        elif head in stages:
            faults.append(Fault(origin, f"{head} is a stage", f"set one of its keys: {head}.KEY=…"))
        else:
            hint = did_you_mean(head, [*Recipe.model_fields, *stages])
            faults.append(Fault(origin, f'there is no key or stage "{head}"', hint))
    return faults


def _from_environment(document: Document, environment: Mapping[str, str]) -> Iterator[Override]:
    """ASSAY_SEED=1 and ASSAY_PPO__KL_TARGET=3 as overrides. Other ASSAY_ variables belong to other commands."""
    stages = {name.replace("-", "_").lower(): name for name, _ in _stages(document)}
    for variable, text in sorted(environment.items()):
        head, *rest = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        known = head in Recipe.model_fields or (head in stages and rest)
        if variable.startswith(ENVIRONMENT_PREFIX) and known:
            key = ".".join([stages.get(head, head), *rest])
            yield (variable, *split_override(f"{key}={text}"))


def _label(document: Document, path: KeyPath) -> str:
    """How the user calls a key: `ppo.kl_target` for ("stages", 2, "ppo", "kl_target")."""
    for name, place in _stages(document):
        if path[:3] == place:
            return dotted((name, *path[3:]))
    if path[:1] == ("stages",) and len(path) > 1 and isinstance(path[1], int):
        return dotted((f"stage {path[1] + 1}", *path[2:]))
    return dotted(path)
