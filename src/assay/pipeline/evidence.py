"""What detectors can be asked about before a run: settings, data, tokens, models, roles, memory and disk.

Nothing is trained, fetched or written, and what is looked at is bounded: samples of the data, a few short rows of a
model, and no model of more than 200 M parameters.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from assay.config import Config
from assay.data import hub
from assay.data.config import FileData, FileSource
from assay.data.prepared import Prepared
from assay.data.records import Item
from assay.data.render import Renderer
from assay.doctor.data import Data, Reading, evenly
from assay.doctor.detector import DETECTORS, Evidence
from assay.doctor.finding import Unchecked
from assay.doctor.labels import Scored
from assay.doctor.machine import Machine
from assay.doctor.probe_policy import PolicyProbe
from assay.doctor.probe_reward import RewardProbe
from assay.doctor.recipe import Disk, Memory, Planned, RewardFolder, Vocabularies, Weights
from assay.doctor.tokens import Endings, Prompts, Tokens
from assay.errors import AssayError, DataError
from assay.models.load import load_tokenizer
from assay.models.load_reward import reward_renderer
from assay.models.locate import locate
from assay.models.precision import compute_dtype
from assay.models.reward_folder import missing_head
from assay.models.roles import load_policy, load_reward_model
from assay.pipeline import environment
from assay.pipeline.architecture import Architectures
from assay.pipeline.artifacts import Store
from assay.pipeline.footprint import Model
from assay.pipeline.inputs import prepare
from assay.pipeline.plan import Need, estimator_of, memory_needs
from assay.pipeline.recipe import NamedRecipe
from assay.pipeline.steps import Step, is_hub_id
from assay.rollout.engine import Engine
from assay.stages.config import DistillConfig, PreferenceConfig, PretrainConfig, RewardConfig, SFTConfig
from assay.types import Prompt
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
LARGEST = 200_000_000
"""Parameters of a model that is asked something: two cores read a few short rows with it in seconds."""
ASKED, SHORT, ANSWER = 4, 48, 16
"""Rows that a model is asked about, their tokens, and those of an answer."""


@dataclass
class Gathered:
    """Evidence as it is gathered; what could not be gathered, and what a run would be refused for."""

    looked_at: list[str] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    unchecked: list[Unchecked] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """An error that would end the run is a finding like others."""
        try:
            yield
        except AssayError as error:
            if (error.what, error.hint) not in self.refused:  # several stages may meet the same
                self.refused.append((error.what, error.hint))

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
        for role, (source, *_) in step.node.inputs.items():
            rewards = role in ("reward", "judge") or (role == "base" and getattr(step.node.config, "trained", False))
            if not self.first("model", source, rewards) or role == "policies":
                continue
            kinds = (RewardProbe, Scored) if rewards else (PolicyProbe, Endings)
            made = None if source.outside else self.store.get(self.steps[source.name].identity.id)
            if source.outside and is_hub_id(source.name) and not _here(source.name):
                kinds += (RewardFolder,) if rewards else ()
                self.gathered.leave_out(step.id, _on_the_hub(source.name), *kinds)
            elif not source.outside and made is None:
                self.gathered.leave_out(source.name, "this stage has still to make its model", *kinds)
            elif rewards:
                self.reward_model(step, locate(source.name) if made is None else made.folder)
            else:
                self.policy(step, locate(source.name) if made is None else made.folder)

    def policy(self, step: Step, folder: Path) -> None:
        """A policy, beside itself as reference and as sampler."""
        assert step.node is not None
        model, items = self.model(step), self.texts()
        assert model is not None
        if not isinstance(self.renderer(step, model), Renderer):
            return  # an encoder, which is no policy
        if model.parameters > LARGEST or not items:
            size = f"the model is too large to be asked in seconds ({model.parameters / 1e6:,.0f} M parameters)"
            self.gathered.leave_out(step.id, size if items else "there is no text to ask it about", PolicyProbe)
            return
        odd = not_finite(folder)
        self.gathered.evidence.append(Weights(step.id, str(folder), odd))
        if odd:
            self.gathered.leave_out(step.id, "its weights are not finite", PolicyProbe)
            return
        template = self.named.recipe.model.template
        policy = load_policy(folder, lora=getattr(step.node.config, "lora", None), device=self.device)
        policy.eval()
        frozen = load_policy(folder, trainable=False, device=self.device)
        renderer = policy.renderer(template, SHORT)
        rows = [row for prompt, text in items if (row := renderer.row(prompt, text))]
        prompts = [prompt for prompt, _ in items]
        sampler = Engine(policy, policy.renderer(template, SHORT + ANSWER), max_batch=ASKED)
        self.gathered.evidence.append(PolicyProbe(policy, rows, frozen, frozen, sampler, prompts, where=step.id))

    def reward_model(self, step: Step, folder: Path) -> None:
        """A finished reward model: its head, and how it scores a few pairs."""
        missing = missing_head(folder)
        self.gathered.evidence.append(RewardFolder(step.id, str(folder), missing))
        pairs = evenly(self.data.preferences.train, ASKED) if self.data else ()
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 4
        if missing or not pairs or size > LARGEST:
            why = "its head is missing" if missing else "there are no pairs" if not pairs else "it is large"
            self.gathered.leave_out(step.id, f"the reward model is not asked anything: {why}", RewardProbe)
            return
        template = self.named.recipe.model.template
        model = load_reward_model(folder, trainable=False, template=template, max_length=2 * SHORT, device=self.device)
        self.gathered.evidence.append(RewardProbe(model, pairs, folder, where=step.id))

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

    def texts(self) -> list[tuple[Prompt, str]]:
        """A few prompts with an answer."""
        data = self.data or Prepared()
        shown = [(one.prompt, one.response) for one in evenly(data.demonstrations.train, ASKED)]
        return shown or [(pair.prompt, pair.chosen) for pair in evenly(data.preferences.train, ASKED)]

    def first(self, *key: Any) -> bool:
        """Whether this is looked at for the first time."""
        new = key not in self.seen
        self.seen.add(key)
        return new


def learned_from(config: Any, data: Prepared) -> Sequence[Item]:
    """What a stage makes rows of; nothing for those that learn from what they sample."""
    if isinstance(config, SFTConfig):
        return data.demonstrations.train
    if isinstance(config, RewardConfig) and not config.trained:
        return data.steps.train if config.steps else data.preferences.train
    if isinstance(config, PreferenceConfig) and not config.rounds:
        return data.preferences.train if config.paired else data.preferences.train or data.verdicts.train
    return ()


def disk_mb(needs: Sequence[Need]) -> float:
    """A model of each stage in fp32; of one stage two checkpoints with both moments: one takes the other's place."""
    models = sum(4 * need.estimate.parameters for need in needs)
    return (models + max((2 * 12 * need.estimate.trained for need in needs), default=0)) / 2**20


def not_finite(folder: Path) -> list[str]:
    """Names of the weights in a model's folder that are not finite; one tensor at a time is in memory."""
    odd: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            odd += [name for name in weights.keys() if not weights.get_tensor(name).isfinite().all()]  # noqa: SIM118
    return odd


def _here(model: str) -> bool:
    try:
        return bool(locate(model, fetch=False))
    except AssayError:
        return False


def _on_the_hub(name: object) -> str:
    return f"{name} is not here: a run asks the hub for it, this does not"
