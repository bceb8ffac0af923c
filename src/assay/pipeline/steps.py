"""A recipe as steps with identities: known before anything runs, so that what exists already is not made again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay import rng
from assay.config import Config
from assay.data import hub
from assay.data.config import FileData, FileSource
from assay.errors import AssayError
from assay.models.locate import HUB_ID, locate
from assay.pipeline.artifacts import Identity, fingerprint
from assay.pipeline.graph import Node, Source, references
from assay.pipeline.recipe import NamedRecipe
from assay.stages.config.common import TrainingConfig

DATA = "data"


@dataclass(frozen=True, slots=True)
class Step:
    """One artifact to make: the data (no node), or a stage."""

    id: str
    identity: Identity
    node: Node | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    """The settings in full, for the manifest."""

    @property
    def parents(self) -> tuple[str, ...]:
        return (DATA, *self.node.parents) if self.node else ()


def parents_of(steps: Sequence[Step]) -> dict[str, list[str]]:
    """The graph of a run by names: every step → the steps that it is made from."""
    return {step.id: list(step.parents) for step in steps}


def steps(named: NamedRecipe, wanted: Collection[str], *, fetch: bool = True) -> list[Step]:
    """The data and the wanted stages in order; what a wanted stage reads must be wanted too.

    Models on the hub are fetched, because their content is part of the identity; without `fetch`, the name of one that
    was never fetched has to do.
    Raises UsageError or ModelError when a model is not there.
    """
    recipe = named.recipe
    settings = recipe.data.model_dump(mode="json")
    data = Identity(DATA, settings, data=data_hashes(recipe.data), seed=recipe.seed)
    made = {DATA: Step(DATA, data, None, settings)}
    for node in [node for node in named.graph if node.id in wanted]:
        inputs = {DATA: data.id}
        for role, sources in node.inputs.items():
            inputs[role] = ",".join(_source_id(source, made, fetch) for source in sources)
        if encoder := getattr(node.config, "encoder", None):  # always from outside: no stage makes one
            inputs["encoder"] = _source_id(Source(encoder, outside=True), made, fetch)
        settings = node.config.model_dump(mode="json")
        named_otherwise = {"id", "seed", "seeds", "encoder", *references(node.config)}
        unnamed = {key: value for key, value in settings.items() if key not in named_otherwise}
        unnamed["template"] = recipe.model.template
        if recipe.corrects and isinstance(node.config, TrainingConfig):
            unnamed["doctor"] = recipe.doctor.act  # may have changed the weights; the other choices cannot
        seed = rng.derive(recipe.seed, node.id) if node.config.seed is None else node.config.seed
        identity = Identity(node.kind, unnamed, inputs, seed=seed)
        made[node.id] = Step(node.id, identity, node, settings)
    return list(made.values())


def data_hashes(data: Config) -> dict[str, str]:
    """Content hash of every file source; of a hub id, which has no content yet, name and commit."""
    if not isinstance(data, FileData):
        return {}
    own = {name: getattr(data, name) for name in FileData.model_fields}
    sources: Iterable[FileSource] = [data, *(source for source in own.values() if isinstance(source, FileSource))]
    return {path: _content(path) for source in sources for path in source.paths}


def is_hub_id(path: str) -> bool:
    """Whether a model would come from the hub."""
    return path != "embedded" and bool(HUB_ID.fullmatch(path)) and not Path(path).exists()


def _source_id(source: Source, made: Mapping[str, Step], fetch: bool) -> str:
    if not source.outside:
        return made[source.name].identity.id
    try:
        return f"model:{fingerprint(locate(source.name, fetch=fetch))}"
    except AssayError:
        if fetch or not is_hub_id(source.name):
            raise
        return f"model:{source.name}"


def _content(path: str) -> str:
    if Path(path).exists():
        return fingerprint(Path(path))
    return hub.hub_content(path) if hub.is_hub_id(path) else f"missing:{path}"
