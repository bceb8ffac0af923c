"""What is drawn beside the faults: healthy runs and models, and a few faults that a picture needs in another form."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from bench.doctor_trial import faults_data, faults_models, faults_outcome, faults_policy, faults_recipe, trial
from bench.doctor_trial.drawing import Given
from bench.doctor_trial.fault import Fault
from tests.unit.stages.toy import COLOURS, Memory, toy_data

from assay.data.pack import TokenBatch
from assay.data.render import Renderer
from assay.doctor.detector import Evidence
from assay.doctor.machine import Machine, Settings
from assay.doctor.probe_reward import RewardProbe
from assay.doctor.tokens import Tokens
from assay.models.roles import RewardModel, load_reward_model
from assay.stages import reward as reward_stage
from assay.stages.context import StageInputs
from assay.types import Preference

Source = Callable[[Path], Given]


def faults_of(mode: str) -> list[Fault]:
    return [fault for fault in trial.FAULTS if fault.mode == mode]


@functools.cache
def evidence(source: Source) -> Given:
    """What it gives, run once; its folder lives as long as the process."""
    return source(Path(tempfile.mkdtemp(prefix="doctor-plots-")))


def group(folder: Path) -> Given:
    return faults_policy.run(folder, "group")


def ppo(folder: Path) -> Given:
    return faults_policy.run(folder, "ppo", iterations=30)


def towards_a_target(folder: Path) -> Given:
    """As the fault kl-blow-up asks for, with a penalty that can hold it."""
    return faults_policy.run(folder, "group", kl_target=0.1, kl_coef=2.0, kl_horizon=500)


def reward_run(folder: Path) -> Given:
    return [faults_models.reward_log(folder)]


def validated_often(folder: Path) -> Given:
    return [faults_models.reward_log(folder, epochs=4, validate_every=2)]


def sft_run(folder: Path) -> Given:
    return [faults_models.sft_log(folder)]


def direct_run(folder: Path) -> Given:
    return [faults_models.direct_log(folder)]


def reward_probe(folder: Path) -> Given:
    return [faults_models.reward_probe()]


def policy_probe(folder: Path) -> Given:
    return [faults_models.policy_probe()]


def step_probe(folder: Path) -> Given:
    return [faults_models.step_probe()]


def left_padded(folder: Path) -> Given:
    return [faults_models.prompt_batch("left")]


def apart_encoded(folder: Path) -> Given:
    """Prompt and answer encoded each for itself."""
    renderer = Renderer(faults_data.tokenizer_of(), max_length=128)
    return [Tokens("sft", renderer, faults_data.items())]


def undecided(folder: Path) -> Given:
    """A reward model after a few steps, asked about every two colours: its margins are small."""
    ctx = Memory(folder)
    config = faults_models.reward_config(epochs=1, optim={"learning_rate": 3e-3})
    with faults_models.uncalibrated:
        reward_stage.run(config, StageInputs(toy_data(), str(faults_models.sft_model())), ctx)
    pairs = [Preference(prompt, *two) for prompt in faults_models.ASKED for two in itertools.combinations(COLOURS, 2)]
    return [RewardProbe(load_reward_model(folder, trainable=False, max_length=32), pairs)]


class Rounded(RewardModel):
    """Scores near 65, in bf16."""

    def scores(self, batch: TokenBatch) -> torch.Tensor:
        return (super().scores(batch) + faults_models.OFFSET).bfloat16().float()


def rounded(folder: Path) -> Given:
    (probe,) = undecided(folder)
    assert isinstance(probe, RewardProbe)
    probe.model.__class__ = Rounded
    return [probe]


def who_disagree(folder: Path) -> Given:
    """Enough pairs of people who disagree in one of five."""
    own = toy_data()
    pairs = faults_data.flipped([*own.preferences.train] * 8, 0.2)
    data = replace(own, preferences=replace(own.preferences, train=pairs))
    return [faults_models.direct_log(folder, data, epochs=1)]


def spelled_well(folder: Path) -> Given:
    return [Settings("train.yaml", {"lr": "1.0e-5"})]


def spelled_badly(folder: Path) -> Given:
    return [Settings("train.yaml", {str(n): text for n, text in enumerate(("1e-5", "'1.0e-5'", "1,5e-5"))})]


def in_float32(folder: Path) -> Given:
    return [Machine.of("sft", torch.float32)]


def one_begin(folder: Path) -> Given:
    return [Tokens("sft", Renderer(faults_data.tokenizer_of(bos="<|begin|>"), max_length=128), faults_data.items())]


def with_truth(folder: Path) -> Given:
    """As the fault reward-hacking, without it."""
    worth = {"blue": 2.0, "green": 1.0}
    return faults_policy.run(folder, "group", truth=lambda _, texts: [worth.get(text, 0.0) for text in texts])


def kept_its_place(folder: Path) -> Given:
    return faults_data.resumed(folder, lost=False)


def small_recipe(folder: Path) -> Given:
    return faults_recipe.shown_by(faults_recipe.recipe(), folder)


def refusing_rightly(folder: Path) -> Given:
    return faults_outcome.refusing(folder, faults_outcome.HARMFUL)


def preferring_rightly(folder: Path) -> Given:
    return faults_outcome.preferring(folder, "blue")


def held(folder: Path) -> Given:
    """Near its start, by the penalty."""
    return faults_policy.run(folder, "ppo", iterations=30, kl_coef=0.5)


def unheld(folder: Path) -> Given:
    """The setting of the fault no-anchor in a run that is long enough to get lost."""
    return faults_policy.run(folder, "ppo", iterations=30, kl_coef=0.0)


def by_ten(folder: Path) -> Given:
    return [faults_models.reward_log(folder, epochs=2)]


def one_by_one(folder: Path) -> Given:
    """The setting of the fault steps-of-noise in a run, with as many pairs in all."""
    return [faults_models.reward_log(folder, epochs=2, batch_size=1)]


def all_that_stand_still(folder: Path) -> Given:
    found: list[Evidence] = []
    for fault in faults_of("nothing-moves"):
        found += evidence(fault.evidence)
    return found
