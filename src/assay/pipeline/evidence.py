"""What detectors can be asked about before a run: settings, data, tokens, models, roles, memory and disk.

Nothing is trained, fetched or written, and what is looked at is bounded: samples of the data, a few short rows of a
model, and no model of more than 200 M parameters.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from assay.config import Config
from assay.data import hub
from assay.data.config import FileData, FileSource
from assay.data.prepared import Prepared
from assay.data.render import Renderer
from assay.doctor.data import Data, Reading
from assay.doctor.detector import DETECTORS, Evidence, Missing
from assay.doctor.finding import Mode, Unchecked
from assay.doctor.labels import Scored
from assay.doctor.machine import Machine
from assay.doctor.probe_batch import PromptBatch
from assay.doctor.probe_policy import PolicyProbe
from assay.doctor.probe_reward import RewardProbe
from assay.doctor.recipe import Disk, Memory, Planned, RewardFolder, Vocabularies
from assay.doctor.tokens import Endings, Prompts, Tokens
from assay.errors import AssayError, DataError
from assay.models.load import load_tokenizer
from assay.models.load_reward import reward_renderer
from assay.models.locate import locate
from assay.models.precision import compute_dtype
from assay.pipeline import environment
from assay.pipeline.architecture import Architectures
from assay.pipeline.artifacts import Store
from assay.pipeline.asking import Question, Stage, learned_from
from assay.pipeline.footprint import Model
from assay.pipeline.inputs import prepare
from assay.pipeline.plan import Need, estimator_of, memory_needs
from assay.pipeline.questions import before, compares, inapplicable
from assay.pipeline.recipe import NamedRecipe
from assay.pipeline.steps import Step, is_hub_id
from assay.rollout.stops import StopStrings
from assay.stages.config import DistillConfig, PretrainConfig
from assay.worlds.config import WorldData

ROWS = 10_000
"""Rows of each source that `assay doctor` prepares: the detectors look at a few thousand of them."""
MADE = {
    "demonstrations": 1000,
    "preferences": 2000,
    "rankings": 500,
    "steps": 500,
    "verdicts": 500,
    "documents": 500,
}
"""The same of a world."""


@dataclass
class Gathered:
    """Evidence as it is gathered; what could not be gathered, and what a run would be refused for."""

    looked_at: list[str] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    unchecked: list[Unchecked] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    """What must be there and could not be read."""
    notes: list[str] = field(default_factory=list)
    inapplicable: set[tuple[Mode, str]] = field(default_factory=set)
    """What cannot be wrong in a place: nobody is told that it was not looked for."""

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """An error that would end the run is a finding like others."""
        try:
            yield
        except AssayError as error:
            if (error.what, error.hint) not in self.refused:  # several stages may meet the same
                self.refused.append((error.what, error.hint))

    def put(self, question: Question) -> list[Evidence]:
        """What a question gives; nothing, and the reason why it is unchecked, where it cannot be asked."""
        try:
            return [*question.ask()]
        except Missing as missing:
            self.leave_out(question.where, str(missing), *question.kinds)
            return []

    def lose(self, where: str, error: Exception, *evidence: type) -> None:
        """The same for what should be there and cannot be read, which leaves no verdict; one file is told once."""
        kind = "" if isinstance(error, AssayError | OSError) else f"{type(error).__name__}: "
        why = f"{kind}{error}".partition("\n")[0]
        if not any(told.endswith(why) for told in self.unread):
            self.unread.append(f"{where}: {why}")
        self.leave_out(where, why, *evidence)

    def unknown(self, unchecked: Iterable[Unchecked]) -> list[Unchecked]:
        """What detectors could not look for, and what they were not shown."""
        return [one for one in (*unchecked, *self.unchecked) if (one.mode, one.where) not in self.inapplicable]

    def leave_out(self, where: str, why: str, *evidence: type) -> None:
        """Every mode that is seen in evidence of these kinds is unchecked."""
        found = dict.fromkeys(mode for one in DETECTORS if one.evidence in evidence for mode in one.modes)
        self.unchecked += [Unchecked(mode, where, why) for mode in found]


def data_of(gathered: Gathered, named: NamedRecipe, steps: Sequence[Step], store: Store) -> Prepared | None:
    """The data artifact; else a sample, prepared now; None for what a run would fetch."""
    config, found = named.recipe.data, store.get(steps[0].identity.id) if steps else None
    if found:
        return Prepared.load(found.folder)
    remote = dict.fromkeys(path for source in sources(config) for path in source.paths if hub.is_hub_id(path))
    if remote:
        gathered.leave_out("data", _on_the_hub(", ".join(remote)), Data, Reading, Tokens, Prompts, Memory, Disk)
        return None
    try:
        small = sample_of(config)
        data = prepare(small, named.recipe.seed)
    except DataError:
        for source in sources(config):  # why nothing is left of it
            assert isinstance(config, FileData)
            gathered.evidence.append(Reading.files(source, config.clean, named.recipe.seed))
        raise
    if small != config and data.report.get("rows", ROWS) >= ROWS:  # else every row of the files was looked at
        gathered.notes.append(f"of the data a sample was looked at: {_in_words(small)}")
    return data


def sources(data: Config) -> list[FileSource]:
    """Every source of files that a recipe names."""
    if not isinstance(data, FileData):
        return []
    named = [data, *(getattr(data, name) for name in type(data).model_fields)]
    return [source for source in named if isinstance(source, FileSource) and source.paths]


def sample_of(data: Config) -> Config:
    """The same data, fewer of them."""
    if isinstance(data, WorldData):
        return data.model_copy(update={name: min(getattr(data, name), most) for name, most in MADE.items()})
    assert isinstance(data, FileData)
    own = {name: getattr(data, name) for name in type(data).model_fields}
    fewer = {name: _fewer(source) for name, source in own.items() if isinstance(source, FileSource)}
    return _fewer(data).model_copy(update=fewer)


def _fewer(source: FileSource) -> FileSource:
    return source.model_copy(update={"subset_size": min(source.subset_size or ROWS, ROWS)}) if source.paths else source


def look_at_data(gathered: Gathered, named: NamedRecipe, data: Prepared) -> None:
    """What was left out when the data were read, and what is left."""
    gathered.looked_at.append("data")
    if "rows" in data.report:  # what was made has no rows that could be left out
        gathered.evidence.append(Reading.of(data.report))
    gathered.evidence.append(Data("data", data, named.recipe.data.model_dump(mode="json")))


def _in_words(data: Config) -> str:
    if isinstance(data, WorldData):
        return ", ".join(f"{getattr(data, name):,} {name}" for name in MADE if getattr(data, name))
    return f"{ROWS:,} rows of each source at most"


# Stages, their tokens, their models


def look_at_stages(
    gathered: Gathered, named: NamedRecipe, steps: Sequence[Step], store: Store, data: Prepared | None
) -> None:
    """Settings, rows, prompts and models of the stages still to make, and the room that they need."""
    device = environment.device(named.recipe.device)
    known = {step.id: step for step in steps}
    look = _Stages(gathered, named, known, store, data, device, Architectures(known, data or Prepared()))
    for step in look.to_make:
        gathered.looked_at.append(step.id)
        look.settings(step)
        with gathered.refusing():
            look.rows(step)
        with gathered.refusing():
            look.stops(step)
        with gathered.refusing():
            look.vocabularies(step)
        with gathered.refusing():
            look.models(step)
    look.machine()
    if data is not None:
        with gathered.refusing():
            look.room()


@dataclass
class _Stages:
    """One look at the stages of a recipe; what several of them have in common is looked at once."""

    gathered: Gathered
    named: NamedRecipe
    steps: Mapping[str, Step]
    store: Store
    data: Prepared | None
    device: str
    architectures: Architectures
    seen: set[tuple[Any, ...]] = field(default_factory=set)

    @property
    def to_make(self) -> list[Step]:
        return [step for step in self.steps.values() if step.node and not self.store.get(step.identity.id)]

    def settings(self, step: Step) -> None:
        """What the settings say, and how large the model is."""
        assert step.node is not None
        model = self.model(step)
        parameters = model.parameters if model else None
        self.gathered.evidence.append(Planned(step.node.kind, step.id, step.config, parameters))

    def rows(self, step: Step) -> None:
        """What the stage would train on, and the prompts it would answer."""
        assert step.node is not None
        config, model = step.node.config, self.model(step)
        if self.data is None or isinstance(config, PretrainConfig):
            return
        items, sampling = learned_from(config, self.data), getattr(config, "sampling", None)
        origin = self.architectures.origin(step)
        if model is None:
            self.gathered.leave_out(step.id, _on_the_hub(origin), Tokens, Prompts)
            return
        renderer = self.renderer(step, model)
        if not isinstance(renderer, Renderer):
            why = "an encoder reads prompt and answer as two texts and cuts the longer one"
            self.gathered.leave_out(step.id, why, Tokens)
            return
        shared = (str(origin), renderer.max_length)
        if items and self.first(type(config), *shared):
            words = None if isinstance(origin, PretrainConfig) else model.vocabulary
            self.gathered.evidence.append(Tokens(step.id, renderer, items, words))
        if sampling and not items and self.first("prompts", sampling.max_new_tokens, *shared):
            room = max(0, renderer.max_length - sampling.max_new_tokens)
            self.gathered.evidence.append(Prompts(step.id, renderer, self.data.prompts.train, room))

    def stops(self, step: Step) -> None:
        """Stop strings that the stage's tokenizer can never write, where it is here."""
        assert step.node is not None
        sampling, origin = getattr(step.node.config, "sampling", None), self.architectures.origin(step)
        if sampling and sampling.stop and isinstance(origin, str) and _here(origin):
            StopStrings(self.architectures.tokenizer(step), sampling.stop).check(sampling.stop)

    def vocabularies(self, step: Step) -> None:
        """Of the one role that must speak the words of another: a student those of its teacher."""
        assert step.node is not None
        if not isinstance(step.node.config, DistillConfig):
            return
        origins = {role: self.architectures.origin(step, role) for role in ("base", "teacher")}
        if all(isinstance(origin, str) and _here(origin) for origin in origins.values()):
            words = {role: load_tokenizer(locate(str(origin))).get_vocab() for role, origin in origins.items()}
            self.gathered.evidence.append(Vocabularies(step.id, words))

    def models(self, step: Step) -> None:
        """Models that are here are asked a few questions; those that a stage has still to make cannot be."""
        assert step.node is not None
        config, folders = step.node.config, dict[str, Path]()
        for role, (source, *_) in step.node.inputs.items():
            if role == "policies":
                continue
            rewards = role in ("reward", "judge") or (role == "base" and getattr(config, "trained", False))
            made = None if source.outside else self.store.get(self.steps[source.name].identity.id)
            kinds = (RewardFolder, RewardProbe, Scored) if rewards else (PolicyProbe, Endings, PromptBatch)
            if source.outside and is_hub_id(source.name) and not _here(source.name):
                if self.first("model", source, rewards):
                    self.gathered.leave_out(step.id, _on_the_hub(source.name), *kinds)
            elif not source.outside and made is None:
                if self.first("model", source, rewards):
                    self.gathered.leave_out(source.name, "this stage has still to make its model", *kinds)
            else:
                folders[role] = locate(source.name) if made is None else made.folder
        stage = Stage(
            step.id,
            config,
            folders,
            self.data or Prepared(),
            self.named.recipe.model.template,
            self.device,
            step.identity.seed,
        )
        self.gathered.inapplicable.update(inapplicable(stage))
        for question in before(stage):
            models = tuple(str(folders.get(role)) for role in question.roles)
            if "None" not in models and self.first(models, question.kinds, compares(config)):
                self.gathered.evidence += self.gathered.put(question)

    def machine(self) -> None:
        """The number format that the largest model would be computed in, where that is not fp32 on a CPU."""
        sizes = [model.parameters for step in self.to_make if (model := self.model(step))]
        used = compute_dtype(self.device, max(sizes, default=0))
        if self.device == "cpu" and used != torch.float32:
            self.gathered.evidence.append(Machine.of("machine", used))

    def room(self) -> None:
        """Memory of the stage that needs most, or of all that do not fit, and the disk."""
        assert self.data is not None
        estimator = estimator_of(self.named, list(self.steps.values()), self.data)
        needs = list(memory_needs(estimator, self.store))
        most = max(needs, key=lambda need: need.estimate.memory_mb, default=None)
        for step in self.to_make:
            if step.id not in {need.step.id for need in needs}:
                self.gathered.leave_out(step.id, "its model is not here", Memory)
        free_mb = environment.free_mb(self.device)
        for need in needs:
            if not need.fits or need is most:
                wanted, there = need.estimate.memory_mb, need.there_mb
                self.gathered.evidence.append(Memory(need.step.id, wanted, there, free_mb, need.fits, need.change))
        root = next(folder for folder in (self.store.root, *self.store.root.absolute().parents) if folder.is_dir())
        free_mb = shutil.disk_usage(root).free / 2**20
        self.gathered.evidence.append(Disk(str(self.store.root.parent), disk_mb(needs), free_mb))

    def model(self, step: Step) -> Model | None:
        """What the stage trains or asks, without weights; None where it is not here."""
        assert step.node is not None
        shape = self.architectures.shape(step)
        return None if shape is None else Model(shape, self.device, classifier=step.node.kind == "reward")

    def renderer(self, step: Step, model: Model) -> Any:
        """How the stage's model reads."""
        assert step.node is not None
        tokenizer, template = self.architectures.tokenizer(step), self.named.recipe.model.template
        length = min(step.node.config.max_length, model.context)
        if model.classifier:
            return reward_renderer(model.build(device="meta")[0].model, tokenizer, template, length)
        return Renderer(tokenizer, template=template, max_length=length)

    def first(self, *key: Any) -> bool:
        """Whether this is looked at for the first time."""
        new = key not in self.seen
        self.seen.add(key)
        return new


def disk_mb(needs: Sequence[Need]) -> float:
    """A model of each stage in fp32; of one stage two checkpoints with both moments: one takes the other's place."""
    models = sum(4 * need.estimate.parameters for need in needs)
    return (models + max((2 * 12 * need.estimate.trained for need in needs), default=0)) / 2**20


def _here(model: str) -> bool:
    try:
        return bool(locate(model, fetch=False))
    except AssayError:
        return False


def _on_the_hub(name: object) -> str:
    return f"{name} is not here: a run asks the hub for it, this does not"
