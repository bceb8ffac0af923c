"""Before a run: each kind of failure, injected into a small recipe, is named first; the healthy one is green."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.doctor_trial.faults_data import dialogue, pairs
from tests import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from assay.doctor import examination as examination_of
from assay.doctor.cure import BEFORE
from assay.doctor.examination import Examination
from assay.errors import UsageError
from assay.models import precision
from assay.pipeline import checkup, environment, evidence, runner
from assay.pipeline.checkup import before_run, of_recipe
from assay.pipeline.recipe import draft, load_recipe
from assay.pipeline.runner import run
from assay.rollout.stops import StopStrings

from .fakes import Fakes

RECIPE = """\
model: {model}
data: {{path: {data}, validation_split: 0.1, test_split: 0.2}}
runs_dir: {runs}
stages:
  - sft: {{epochs: 1, batch_size: 16, max_length: 256, optim: {{learning_rate: 1.0e-3}}}}
  - reward: {{batch_size: 16, max_length: 256, optim: {{learning_rate: 1.0e-3}}}}
  - ppo:
      episodes: 64
      batch_size: 16
      max_length: 256
      lora: {{r: 4}}
      optim: {{learning_rate: 1.0e-3}}
      sampling: {{max_new_tokens: 32}}
"""


@dataclass
class Workplace:
    """A recipe with everything it names."""

    folder: Path
    settings: tuple[str, ...] = ()

    @property
    def data(self) -> Path:
        return self.folder / "pairs.jsonl"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def recipe(self) -> Path:
        return self.folder / "mine.yaml"

    def rows(self, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> None:
        """Write the data, each row changed."""
        rows = [change(number, row) for number, row in enumerate(pairs(240))]
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def weights(self, change: Callable[[Any], None]) -> None:
        """Save the model, its weights changed."""
        model = AutoModelForCausalLM.from_pretrained(self.model)
        with torch.no_grad():
            change(model)
        model.save_pretrained(self.model)

    def examined(self) -> Examination:
        return of_recipe(draft(str(self.recipe), self.settings, {}))


@pytest.fixture(autouse=True)
def nobody_else_holds_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "free_mb", environment.memory_mb)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    made = Workplace(tmp_path)
    shutil.copytree(tiny.folder("llama", pad=True), made.model)
    made.rows(lambda number, row: row)
    made.recipe.write_text(RECIPE.format(model=made.model, data=made.data, runs=tmp_path / "runs"))
    return made


def named(given: Examination) -> list[str]:
    return [cause.mode.name for cause in given.diagnosis.causes]


def test_a_healthy_recipe_is_green_in_seconds_and_nothing_is_written(place: Workplace) -> None:
    began = time.process_time()
    given = place.examined()
    assert time.process_time() - began < 30
    assert (given.diagnosis.verdict, named(given)) == ("green", [])
    assert given.stages == ["settings", "data", "sft", "reward", "ppo"]
    assert not (place.folder / "runs").exists()
    why = {(unchecked.where, unchecked.why) for unchecked in given.diagnosis.unchecked}
    assert ("sft", "this stage has still to make its model") in why
    assert ("reward", "this stage has still to make its model") in why


def test_a_stop_string_that_can_never_come_is_refused_before_anything_is_trained(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StopStrings, "alone", ["a", "b", "End"])  # all that this tokenizer can write
    place.settings = ("ppo.sampling.stop=[End]",)
    assert named(place.examined()) == []
    place.settings = ("ppo.sampling.stop=[End, END]",)
    given = place.examined()
    assert (given.diagnosis.verdict, named(given)) == ("red", ["cannot-run"])
    assert "sampling.stop: 'END' can never stand in an answer" in given.diagnosis.causes[0].evidence


@pytest.mark.parametrize(
    ("settings", "mode", "verdict"),
    [
        (("sft.optim.learning_rate=5%",), "number-as-text", "red"),
        (("sft.epoch=2",), "cannot-run", "red"),
        (("ppo.reward=sft",), "cannot-run", "red"),
        (("model.path=./nowhere",), "cannot-run", "red"),
        (("data.path=nowhere.jsonl",), "cannot-run", "red"),
        (("device=cuda:7",), "cannot-run", "red"),
        (("sft.optim.learning_rate=1",), "learning-rate-out-of-range", "red"),
        (("reward.optim.learning_rate=1e-9",), "learning-rate-out-of-range", "amber"),
        (("ppo.kl_coef=0",), "no-anchor", "amber"),
        (("reward.batch_size=1",), "steps-of-noise", "amber"),
        (("sft.max_length=24",), "response-cut-away", "red"),
        (("ppo.max_length=40",), "prompts-cut-away", "red"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_settings_that_fail_are_named_first(
    place: Workplace, settings: tuple[str, ...], mode: str, verdict: str
) -> None:
    place.settings = settings
    given = place.examined()
    assert (named(given)[0], given.diagnosis.verdict) == (mode, verdict)


@pytest.mark.parametrize(
    ("setting", "usual"),
    [("sft.batch_size=0", "32"), ("ppo.optim.learning_rate=0", "3.0e-06"), ("sft.optim.warmup=-1", "0.")],
)
def test_a_value_that_means_nothing_is_told_with_the_one_that_is_usual(
    place: Workplace, setting: str, usual: str
) -> None:
    place.settings = (setting,)
    (found,) = place.examined().diagnosis.findings
    assert found.mode.name == "cannot-run"
    assert found.advice.startswith(f"The default is {usual}")


def test_a_fault_of_one_part_leaves_the_others_checked(place: Workplace) -> None:
    place.settings = ("model.path=./nowhere",)
    place.rows(lambda n, row: {**row, "rejected": row["chosen"]} if n % 6 == 0 else row)
    assert named(place.examined()) == ["identical-pairs", "cannot-run"]
    place.settings = ("sft.optim.learning_rate=5%", "reward.epoch=2")
    given = place.examined()
    assert named(given) == ["number-as-text", "cannot-run"]
    assert "sft.optim.learning_rate" in given.diagnosis.findings[0].evidence
    assert "epochs" in given.diagnosis.findings[1].advice


@pytest.mark.parametrize(
    ("change", "mode"),
    [
        (lambda n, row: {**row, "chosen": None} if n % 6 == 0 else row, "text-that-is-no-text"),
        (lambda n, row: {**row, "rejected": row["chosen"]} if n % 6 == 0 else row, "identical-pairs"),
        (
            lambda n, row: {
                "chosen": dialogue(row, "chosen"),
                "rejected": dialogue(row, "rejected").replace("Go on", "Stop" if n % 6 == 0 else "Go on"),
            },
            "mis-split-dialogue",
        ),
        (lambda n, row: {**row, "chosen": row["chosen"] + " I hope that this helps you a lot."}, "shortcut"),
    ],
    ids=["some null", "identical", "mis-split", "phrase"],
)
def test_faults_of_the_data_are_named_first(
    place: Workplace, change: Callable[[int, dict[str, Any]], dict[str, Any]], mode: str
) -> None:
    place.rows(change)
    assert named(place.examined())[0] == mode


def test_why_nothing_is_left_of_the_data_is_named_first(place: Workplace) -> None:
    place.settings = ("data.format=trl-pairs",)
    place.rows(lambda n, row: {**row, "chosen": None})
    assert named(place.examined()) == ["text-that-is-no-text", "cannot-run"]


def not_finite(place: Workplace) -> None:
    place.weights(lambda model: model.model.layers[0].mlp.up_proj.weight[0, 0].fill_(float("nan")))


def two_begins(place: Workplace) -> None:
    words = AutoTokenizer.from_pretrained(place.model)
    words.chat_template = "{{ bos_token }}" + words.chat_template
    words.save_pretrained(place.model)


def no_template(place: Workplace) -> None:
    words = AutoTokenizer.from_pretrained(place.model)
    words.chat_template = None
    words.save_pretrained(place.model)
    (place.model / "chat_template.jinja").unlink(missing_ok=True)


def fewer_embeddings(place: Workplace) -> None:
    tiny.causal_folder(place.folder / "small", "llama", pad=True)
    shutil.rmtree(place.model)
    small = AutoModelForCausalLM.from_pretrained(place.folder / "small")
    small.resize_token_embeddings(300)
    small.save_pretrained(place.model)
    tiny.tokenizer(pad=True).save_pretrained(place.model)


@pytest.mark.parametrize(
    ("break_it", "mode"),
    [
        (not_finite, "not-finite"),
        (two_begins, "double-bos"),
        (no_template, "cannot-run"),
        (fewer_embeddings, "tokenizer-mismatch"),
    ],
)
def test_faults_of_the_model_are_named_first(
    place: Workplace, break_it: Callable[[Workplace], None], mode: str
) -> None:
    break_it(place)
    assert named(place.examined())[0] == mode


def test_a_reward_model_without_its_head_is_named_first(place: Workplace) -> None:
    place.settings = (f"ppo.reward={place.model}",)
    assert named(place.examined())[0] == "head-lost"


def test_a_machine_without_room_is_named_first(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(environment, "memory_mb", lambda device: 100)
        assert named(place.examined())[0] == "out-of-memory"
    with monkeypatch.context() as patched:
        patched.setattr(environment, "free_mb", lambda device: 100)
        given = place.examined()
        assert (named(given), given.diagnosis.verdict) == (["out-of-memory"], "amber")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 1000))
        assert named(place.examined())[0] == "disk-full"


def test_a_number_format_that_is_imitated_is_named_first(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "compute_dtype", lambda device, parameters: torch.bfloat16)
    monkeypatch.setattr(precision, "product_seconds", lambda dtype: 0.3 if dtype == torch.bfloat16 else 0.001)
    assert named(place.examined())[0] == "slow-number-format"


def test_what_is_on_a_hub_is_not_fetched_but_said(place: Workplace) -> None:
    place.settings = ("model.path=owner/never-fetched", "data.path=owner/never-fetched-data")
    given = place.examined()
    assert given.diagnosis.findings == ()
    assert {unchecked.why.partition(" ")[0] for unchecked in given.diagnosis.unchecked} >= {
        "owner/never-fetched",
        "owner/never-fetched-data",
    }
    assert given.unread == ["neither data nor models are here: only the settings were looked at"]
    assert given.verdict == "unchecked"


# `assay run` does the same.


def started(place: Workplace, said: list[str], **more: Any) -> Fakes:
    fakes = Fakes()
    recipe = load_recipe(str(place.recipe), place.settings, {})
    run(recipe, fakes.request(before=before_run, say=said.append, **more))
    return fakes


def test_a_run_is_looked_at_once(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    assert started(place, said).called == ["sft", "reward", "ppo"]
    assert [line for line in said if line.startswith("doctor:")] == [
        "doctor: green, nothing found that speaks against this run"
    ]
    (found,) = (place.folder / "runs").glob(f"*/{BEFORE}")
    assert json.loads(found.read_text())["verdict"] == "green"

    def never(*given: Any) -> Examination:
        raise AssertionError

    monkeypatch.setattr(checkup, "of_run", never)
    assert started(place, said).called == []  # all is there
    for made in (place.folder / "runs" / "artifacts").glob("ppo-*"):
        shutil.rmtree(made)
    assert started(place, said).called == ["ppo"]  # it goes on


def test_amber_is_said_and_the_run_goes_on(place: Workplace) -> None:
    said: list[str] = []
    place.settings = ("ppo.kl_coef=0",)
    assert started(place, said).called == ["sft", "reward", "ppo"]
    (line,) = [line for line in said if line.startswith("doctor:")]
    assert line.startswith("doctor: amber, no-anchor (ppo): kl_coef is 0")
    assert line.endswith("ppo.kl_coef=0.05")


def test_red_ends_the_run_before_its_first_stage_unless_it_is_wanted(place: Workplace) -> None:
    place.settings = ("sft.optim.learning_rate=1", "ppo.max_length=40")
    with pytest.raises(UsageError) as refused:
        started(place, [])
    assert "optim.learning_rate is 1" in refused.value.what
    assert "are longer than the 8 tokens" in refused.value.what
    both = ("learning-rate-out-of-range", "prompts-cut-away")
    assert all(f"--despite {name}" in refused.value.hint for name in both)
    with pytest.raises(UsageError, match=r"^Most prompts"):
        started(place, [], despite=both[:1])
    assert started(place, [], despite=both).called == ["sft", "reward", "ppo"]


def test_despite_names_what_the_doctor_knows(place: Workplace) -> None:
    with pytest.raises(UsageError, match="knows no") as refused:
        started(place, [], despite=["double-boss"])
    assert "double-bos" in refused.value.hint
    assert not (place.folder / "runs").exists(), "it is told before any work"


def test_a_run_that_went_badly_says_so_last(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """With act: warn it has run to its end, so its exit code is 0; its last line is the verdict."""
    said: list[str] = []
    place.settings = ("doctor.act=warn",)
    started(place, said, report=runner.last_words)
    assert said[-1].startswith("doctor: ")
    (folder,) = (place.folder / "runs").glob("mine-*")
    made = next((place.folder / "runs" / "artifacts").glob("sft-*"))
    losses = [2.0] * 10 + [9.0] * 20
    lines = [json.dumps({"step": step, "time": 0.0, "train/loss": loss}) for step, loss in enumerate(losses, 1)]
    (made / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    last = runner.last_words(folder)
    assert last == (
        f"doctor: red, The training loss rises above where it began (sft). Why, and what to change: "
        f"assay doctor {folder}"
    )
    monkeypatch.setattr(examination_of, "examination", lambda folder: 1 / 0)
    assert runner.last_words(folder).startswith("doctor: the run could not be examined (ZeroDivisionError")
