"""Faults in logs as TRL's trainers write them: each is named, in TRL's words, and healthy logs stay green."""

from __future__ import annotations

import csv
import json
import math
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from assay.doctor.detector import DETECTORS
from assay.doctor.examination import Examination, examination
from assay.doctor.foreign import Foreign, log_of
from assay.doctor.log import Log
from assay.doctor.terms import renamed
from assay.statistics import wilson

LINES = 60
Row = dict[str, Any]
Change = Mapping[str, float | Callable[[int], float]]


def noise(step: int, size: float) -> float:
    return random.Random(step).gauss(0, size)


def ppo(i: int) -> Row:
    """As PPO of TRL 1.10 logs: KL and `objective/entropy` are nats an answer, `policy/entropy_avg` nats a token."""
    return {
        "eps": 12,
        "objective/kl": 0.0 if i == 1 else 0.1 * i + noise(i, 0.05),
        "objective/entropy": 30 + noise(i, 1),
        "objective/non_score_reward": -0.005 * i,
        "objective/rlhf_reward": 0.02 * i + noise(i, 0.05),
        "objective/scores": 0.03 * i + noise(i, 0.05),
        "policy/approxkl_avg": 0.005,
        "policy/clipfrac_avg": 0.03,
        "loss/policy_avg": -0.02,
        "loss/value_avg": 0.3,
        "val/clipfrac_avg": 0.01,
        "policy/entropy_avg": 1.2 + noise(i, 0.02),
        "val/ratio": 1.0,
        "val/ratio_var": 0.0005,
        "val/num_eos_tokens": 8,
        "lr": 3e-6 * (1 - (i - 1) / LINES),
        "episode": i * 64,
        "epoch": i / LINES,
        "step": i,
    }


def grpo(i: int) -> Row:
    """As GRPO of TRL 1.16 logs: KL and entropy are nats a token."""
    return {
        "loss": 0.0001 * i,
        "grad_norm": 0.4 + noise(i, 0.05),
        "learning_rate": 1e-6,
        "num_tokens": i * 5000,
        "completions/mean_length": 120 + noise(i, 5),
        "completions/clipped_ratio": 0.05,
        "reward": 0.3 + 0.005 * i + noise(i, 0.02),
        "reward_std": 0.3,
        "frac_reward_zero_std": 0.1,
        "kl": 0.0 if i == 1 else 0.0002 * i,
        "entropy": 1.1 + noise(i, 0.02),
        "clip_ratio/region_mean": 0.001,
        "sampling/sampling_logp_difference/mean": 0.01,
        "step_time": 3.0,
        "epoch": i / LINES,
        "step": i,
    }


def dpo(i: int) -> Row:
    margin = 0.0 if i == 1 else 0.02 * i + noise(i, 0.01)
    return {
        "loss": math.log1p(math.exp(-margin)) + noise(i, 0.01),
        "grad_norm": 5.0,
        "learning_rate": 5e-7,
        "rewards/chosen": margin / 2,
        "rewards/rejected": -margin / 2,
        "rewards/accuracies": min(0.8, 0.5 + 0.006 * i),
        "rewards/margins": margin,
        "logps/chosen": -200.0,
        "logps/rejected": -210.0,
        "epoch": i / LINES,
        "step": 10 * i,
    }


def reward(i: int) -> Row:
    return {
        "loss": 0.69 - 0.003 * i + noise(i, 0.01),
        "grad_norm": 3.0,
        "learning_rate": 1e-5,
        "min_reward": -2.0,
        "max_reward": 2.0,
        "mean_reward": noise(i, 0.1),
        "accuracy": min(0.75, 0.5 + 0.005 * i) + noise(i, 0.02),
        "margin": 0.02 * i,
        "epoch": i / LINES,
        "step": 10 * i,
    }


def sft(i: int) -> Row:
    return {
        "loss": 2.2 - 0.01 * i + noise(i, 0.02),
        "grad_norm": 1.0,
        "learning_rate": 2e-5,
        "mean_token_accuracy": 0.55,
        "entropy": 1.5,
        "epoch": i / LINES,
        "step": 10 * i,
    }


HEALTHY = {"ppo": ppo, "grpo": grpo, "dpo": dpo, "reward": reward, "sft": sft}


def history(trainer: str, change: Change, lines: int = LINES) -> list[Row]:
    """A healthy log with some metrics in place of its own, as numbers or by the line."""
    rows = [HEALTHY[trainer](i) for i in range(1, lines + 1)]
    return [row | {k: v(i) if callable(v) else v for k, v in change.items()} for i, row in enumerate(rows, start=1)]


def examined(folder: Path, rows: list[Row], **state: Any) -> Examination:
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": rows, **state}))
    return examination(folder)


def first(given: Examination) -> str:
    causes = given.diagnosis.causes
    return causes[0].mode.name if causes else "nothing"


@pytest.mark.parametrize("trainer", HEALTHY)
def test_a_healthy_log_is_green(tmp_path: Path, trainer: str) -> None:
    assert examined(tmp_path, history(trainer, {})).diagnosis.verdict == "green"


FAULTS: list[tuple[str, Change, str]] = [
    ("ppo", {"objective/kl": lambda i: 0.0 if i == 1 else 0.05 * 1.17**i}, "kl-blow-up"),
    (
        "ppo",
        {"objective/kl": 0.0, "policy/approxkl_avg": 0.0, "policy/clipfrac_avg": 0.0, "loss/policy_avg": 0.0},
        "nothing-moves",
    ),
    ("ppo", {"objective/kl": 0.0}, "nothing-moves"),  # the policy drifts from step to step: an aliased reference
    ("ppo", {"lr": 0.0, "objective/kl": 0.0}, "nothing-moves"),
    ("ppo", {"val/num_eos_tokens": 0}, "never-stops"),
    ("ppo", {"val/num_eos_tokens": lambda i: max(0, 40 - i)}, "never-stops"),
    ("ppo", {"objective/entropy": lambda i: 30 * 0.9**i, "objective/rlhf_reward": 0.3}, "entropy-out-of-bounds"),
    ("ppo", {"policy/clipfrac_avg": 0.6, "policy/approxkl_avg": 2.0}, "ratio-spikes"),
    ("ppo", {"val/ratio": 15.0}, "ratio-spikes"),
    ("ppo", {"objective/rlhf_reward": lambda i: 1.0 - 0.02 * i + noise(i, 0.05)}, "reward-falls"),
    ("ppo", {"objective/kl": lambda i: 0.0 if i == 1 else -0.03 * i}, "negative-kl"),
    ("grpo", {"kl": lambda i: 0.0 if i == 1 else 0.001 * 1.155**i}, "kl-blow-up"),
    ("grpo", {"learning_rate": 0.0, "kl": 0.0}, "nothing-moves"),
    ("grpo", {"kl": 0.0}, "nothing-moves"),
    ("grpo", {"clip_ratio/region_mean": lambda i: 0.4 + noise(i, 0.02)}, "ratio-spikes"),
    ("grpo", {"completions/clipped_ratio": lambda i: min(1.0, 0.05 + 0.03 * i)}, "never-stops"),
    ("grpo", {"completions/mean_length": lambda i: 120 * 0.9**i}, "empty-answers"),
    ("grpo", {"reward": lambda i: 0.7 - 0.01 * i + noise(i, 0.02)}, "reward-falls"),
    (
        "grpo",
        {"entropy": lambda i: max(0.05, 1.1 * 0.85**i), "completions/mean_length": 800.0},
        "entropy-out-of-bounds",
    ),
    ("grpo", {"sampling/sampling_logp_difference/mean": 0.2}, "sampler-differs"),
    ("grpo", {"frac_reward_zero_std": lambda i: 0.7 + 0.02 * (i % 3)}, "groups-without-signal"),
    ("dpo", {"rewards/accuracies": lambda i: 1.0 if i > 2 else 0.6}, "saturated-early"),
    ("dpo", {"rewards/margins": 0.0, "loss": 0.6931}, "stuck-at-ln2"),
    ("dpo", {"loss": lambda i: 0.69 + 0.2 * i}, "loss-blow-up"),
    (
        "reward",
        {"accuracy": lambda i: 0.5 + noise(i, 0.03), "loss": lambda i: 0.693, "margin": lambda i: noise(i, 0.005)},
        "reward-at-chance",
    ),
    (  # 480 pairs in the second half, as in a real run of TRL's: chance may give 55 % of them
        "reward",
        {"accuracy": lambda i: 0.51 + noise(i, 0.11), "loss": 0.693, "margin": lambda i: noise(i, 0.005)},
        "reward-at-chance",
    ),
    ("reward", {"accuracy": lambda i: 0.3 + noise(i, 0.03), "margin": 0.1}, "accuracy-against-margin"),
    (
        "reward",
        {"mean_reward": 0.1, "min_reward": 0.1, "max_reward": 0.1, "accuracy": 0.0, "margin": 0.0},
        "constant-scores",
    ),
    ("reward", {"margin": 0.0, "accuracy": 0.0}, "constant-scores"),  # within pairs: read in the prompt
    ("reward", {"mean_reward": 65.0, "min_reward": 64.0, "max_reward": 66.0}, "score-drift"),
    ("sft", {"learning_rate": 0.0}, "nothing-moves"),
    ("sft", {"loss": lambda i: 2.2 + 0.1 * i}, "loss-blow-up"),
]


@pytest.mark.parametrize(("trainer", "change", "mode"), FAULTS)
def test_a_fault_is_named_first(tmp_path: Path, trainer: str, change: Change, mode: str) -> None:
    assert first(examined(tmp_path, history(trainer, change))) == mode


@pytest.mark.parametrize(("trainer", "change", "mode"), FAULTS)
def test_a_cure_has_no_option_that_trl_lacks(tmp_path: Path, trainer: str, change: Change, mode: str) -> None:
    for found in examined(tmp_path, history(trainer, change)).diagnosis.findings:
        ours = r"optim\.|sampling\.|kl_target|kl_stop|missing_eos(?!_penalty)|inner_epochs|group_size|resample|patience"
        assert not re.search(ours, found.advice), found.advice
        assert not set(found.change) & {"kl_coef", "optim.learning_rate", "missing_eos", "resample", "reward.centring"}


def test_pairs_that_tie_are_no_guess_where_the_loss_is_lower_than_a_guess_could_make_it(tmp_path: Path) -> None:
    """As in a real run whose scores near 300 were rounded to bf16: 47 % right, and a loss of 0.53."""
    change: Change = {
        "accuracy": lambda i: 0.47 + noise(i, 0.12),
        "margin": lambda i: 1.3 + noise(i, 0.4),
        "loss": lambda i: 0.53 + noise(i, 0.1),
    }
    given = examined(tmp_path, history("reward", change)).diagnosis
    (cause,) = given.causes
    assert (cause.mode.name, [found.mode.name for found in given.consequences_of(cause)]) == (
        "accuracy-against-margin",
        ["reward-at-chance"],
    )
    assert "where so few right pairs cost 0.6" in cause.evidence
    dear: Change = {**change, "loss": lambda i: 0.68 + noise(i, 0.02)}  # what 55 % cost who knows no more
    assert first(examined(tmp_path, history("reward", dear))) == "reward-at-chance"


def with_evaluations(accuracies: list[float], **more: float) -> list[Row]:
    rows = history("reward", {})
    return rows + [
        {"eval_loss": 0.6, "eval_accuracy": a, "epoch": 0.9, "step": 100 * i, **more}
        for i, a in enumerate(accuracies, start=1)
    ]


def test_held_out_pairs_that_are_told_apart_the_wrong_way_round_have_their_labels_swapped(tmp_path: Path) -> None:
    """The validation loss rises with it, and is no overfitting."""
    rows = with_evaluations([0.45, 0.40, 0.35, 0.30], **SPEED)
    for row in rows[:-4]:
        row["accuracy"] = 0.9
    for row in rows[-4:]:
        row["eval_loss"] = 1.2 - row["eval_accuracy"]
    given = examined(tmp_path, rows).diagnosis
    (cause,) = given.causes
    assert (cause.mode.name, [found.mode.name for found in given.consequences_of(cause)]) == (
        "swapped-labels",
        ["overfitting"],
    )
    assert "held-out accuracy 30.0% (at most 34.2%)" in cause.evidence
    assert first(examined(tmp_path, with_evaluations([0.45, 0.49], **SPEED))) == "reward-at-chance"
    unsaid = examined(tmp_path, with_evaluations([0.45, 0.30])).diagnosis.unchecked
    assert "the log has no eval_accuracy" in {one.why for one in unsaid if one.mode.name == "swapped-labels"}


def test_a_dpo_whose_loss_was_thrown_up_and_came_back_is_told(tmp_path: Path) -> None:
    """As in a real run at a thousand times the learning rate: ten steps above a guess, and both answers gone."""
    thrown: Change = {
        "loss": lambda i: 1.2 + 0.5 * noise(i, 1) ** 2 if 1 < i < 16 else 0.69 - 0.003 * i,
        "logps/chosen": lambda i: -5.0 if i == 1 else -35 + noise(i, 2),
        "logps/rejected": lambda i: -5.2 if i == 1 else -38 + noise(i, 2),
    }
    given = examined(tmp_path, history("dpo", thrown)).diagnosis
    assert [(found.mode.name, found.severity) for found in given.findings] == [
        ("loss-blow-up", "red"),
        ("chosen-falls", "amber"),
    ]
    only_rejected: Change = {**thrown, "loss": 0.6, "logps/chosen": -6.0}
    assert first(examined(tmp_path, history("dpo", only_rejected))) == "nothing"


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_guess_that_costs_more_than_a_guess_has_steps_that_are_too_long(tmp_path: Path, evaluated: bool) -> None:
    change: Change = {"accuracy": lambda i: 0.5 + noise(i, 0.05), "loss": lambda i: 4 + noise(i, 0.5), "margin": 0.0}
    rows = history("reward", {**change, "margin": lambda i: noise(i, 3)})
    if evaluated:
        rows += [row | {"eval_accuracy": 0.5} for row in with_evaluations([0.5] * 3, **SPEED)[LINES:]]
    found = examined(tmp_path, rows, train_batch_size=16).diagnosis.causes[0]
    assert (found.mode.name, found.advice.split(",")[0]) == ("reward-at-chance", "Lower `learning_rate` tenfold")
    assert "too low" not in found.explanation


JUMPING = [0.5, 0.7, 0.5, 0.72, 0.48, 0.7]


def test_an_evaluation_that_jumps_is_named_whether_or_not_its_size_is_known(tmp_path: Path) -> None:
    (unknown,) = examined(tmp_path, with_evaluations(JUMPING)).diagnosis.findings
    assert (unknown.mode.name, unknown.severity) == ("fluctuating-accuracy", "amber")
    assert "as that of 12 pairs" in unknown.evidence
    many = examined(tmp_path, with_evaluations(JUMPING, eval_runtime=4.0, eval_samples_per_second=250.0))
    assert [(f.mode.name, f.cause.split(":")[0]) for f in many.diagnosis.causes] == [
        ("fluctuating-accuracy", "The model itself changes between evaluations")
    ]


def test_the_number_of_evaluated_pairs_gives_the_accuracy_its_interval() -> None:
    log = log_of("x", [(1, {"mean_reward": 0.0, "eval_accuracy": 0.6, **SPEED})], [])
    interval = wilson(0.6 * 500, 500)
    assert [log[f"eval/{name}"].last for name in ("n", "accuracy_low", "accuracy_high")] == pytest.approx(
        [500, interval.low, interval.high]
    )


SPEED = {"eval_runtime": 2.5, "eval_samples_per_second": 200.01}


def test_units_are_ours() -> None:
    group = log_of("x", [(1, {"kl": 0.02, "completions/mean_length": 50.0, "frac_reward_zero_std": 0.0})], [])
    assert group["objective/kl"].last == pytest.approx(1.0)  # nats a token → nats an answer
    rows = [(i, {"objective/kl": 0.1, "objective/entropy": 36.0, "policy/entropy_avg": 1.2}) for i in (1, 2)]
    proximal = log_of("x", rows, [])
    assert proximal["objective/entropy"].last == 1.2  # nats a token
    assert proximal["lengths/response_mean"].values.tolist() == pytest.approx([30.0])  # of the first answers alone


def test_pairs_of_a_line_come_from_the_trainers_state(tmp_path: Path) -> None:
    rows = [(10 * i, {"mean_reward": 0.0, "loss": 0.6, "epoch": 0.5 * i}) for i in range(1, 5)]
    assert log_of("x", rows, [], 16).config == {"batch_size": 160, "epochs": 2}
    easy = history("dpo", {"rewards/accuracies": lambda i: 1.0 if i > 2 else 0.6})
    assert "of 160 pairs" not in str(examined(tmp_path, easy, train_batch_size=16).diagnosis.findings)
    (found,) = examined(tmp_path, easy, train_batch_size=16).diagnosis.findings
    assert "over 160 pairs" in found.evidence


def test_a_small_kl_an_answer_in_bf16_is_no_fault_of_the_reference(tmp_path: Path) -> None:
    change: Change = {"objective/kl": lambda i: 0.004 if i == 1 else 0.1 * i}
    assert examined(tmp_path, history("ppo", change)).diagnosis.verdict == "green"


def test_a_table_may_have_the_names_of_an_export() -> None:
    rows = [(i, {f"train/{name}": value for name, value in grpo(i).items()}) for i in range(1, 20)]
    log = log_of("wandb.csv", [(i, row | {"eval/loss": 1.0}) for i, row in rows], notes := [])
    assert (log.kind, log["objective/groups_without_signal"].last, notes) == ("group", 0.1, [])


@pytest.mark.parametrize("column", ["train/global_step", "Step", "epoch"])
def test_the_first_line_of_a_table_is_the_start_only_where_the_trainers_steps_say_so(
    tmp_path: Path, column: str
) -> None:
    """Logged every tenth step: what W&B counts as its first line, and an epoch of 0.02, come after ten updates."""
    rows = history("grpo", {"kl": lambda i: 0.02 + 0.002 * i})
    number = {"train/global_step": 10, "Step": 1, "epoch": 1 / LINES}[column]
    lines = [{column: number * i, **{f"train/{k}": v for k, v in row.items()}} for i, row in enumerate(rows, start=1)]
    for line in lines:
        del line["train/step"]
    with (path := tmp_path / "metrics.csv").open("w", newline="") as file:
        (writer := csv.DictWriter(file, list(lines[0]))).writeheader()
        writer.writerows(lines)
    given = examination(path)
    assert given.verdict == "green"
    assert any("lines are numbered" in note for note in given.notes) == (column == "epoch")
    assert "kl-before-training" in {one.mode.name for one in given.diagnosis.unchecked}


def test_columns_of_which_nothing_is_known_are_named_and_those_that_only_trl_needs_are_not() -> None:
    more = {"gpu/util": 0.9, "my metric": 1.0, "completions/min_length": 3.0, "eval/loss": 0.5, "eval/mine": 1.0}
    log_of("x.csv", [(1, {**grpo(1), **more})], notes := [])
    assert notes == ["x.csv: nothing is known of eval/mine, gpu/util, my metric"]
    log_of("x.csv", [(1, grpo(1) | {f"mine{i}": 1.0 for i in range(9)})], notes := [])
    assert notes == ["x.csv: nothing is known of " + ", ".join(f"mine{i}" for i in range(8)) + " and 1 more"]


def test_what_is_not_there_is_told_in_the_trainers_names(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k not in ("kl", "entropy")} for row in history("grpo", {})]
    unchecked = {one.mode.name: one.why for one in examined(tmp_path, rows).diagnosis.unchecked}
    assert unchecked["negative-kl"] == "the log has no kl"
    assert unchecked["entropy-out-of-bounds"] == "the log has no entropy"
    assert unchecked["repetition"] == unchecked["worse-than-before"] == "TRL logs nothing that would show it"
    assert "ratio-spikes" not in unchecked  # asked in another way


def test_a_kl_that_cannot_be_negative_is_not_looked_for_a_negative_one(tmp_path: Path) -> None:
    """GRPO logs k3; what is below 0 all the same is another estimate."""
    given = examined(tmp_path, history("grpo", {})).diagnosis
    (why,) = (one.why for one in given.unchecked if one.mode.name == "negative-kl")
    assert "cannot be negative (k3)" in why
    below: Change = {"kl": lambda i: 0.0 if i == 1 else -0.0005 * i}
    assert first(examined(tmp_path, history("grpo", below))) == "negative-kl"


@pytest.mark.parametrize(
    ("trainer", "change", "said", "unsaid"),
    [
        ("ppo", {"objective/entropy": lambda i: 30 * 0.9**i, "objective/rlhf_reward": 0.3}, "`kl_coef`", "clip_high"),
        ("grpo", {"entropy": lambda i: 1.1 + 0.05 * i}, "`entropy_coef: 0`", "`beta`"),
        ("grpo", {"entropy": lambda i: 1.1 * 0.9**i, "reward": 0.3}, "`epsilon_high: 0.28`", "entropy_coef"),
        ("ppo", {"objective/kl": 0.0}, "weights of its own", "by hand"),
        ("ppo", {"objective/kl": 0.0, "policy/approxkl_avg": 0.0}, "by hand", "weights of its own"),
        ("dpo", {"rewards/margins": 0.0}, "weights of its own", "learning_rate"),
        ("dpo", {"rewards/margins": 0.0, "learning_rate": 0.0}, "`learning_rate` is above 0", "weights of its own"),
    ],
)
def test_a_cure_is_of_the_branch_that_was_found_and_of_what_the_trainer_has(
    tmp_path: Path, trainer: str, change: Change, said: str, unsaid: str
) -> None:
    advice = examined(tmp_path, history(trainer, change)).diagnosis.causes[0].advice
    assert said in advice
    assert unsaid not in advice


def test_options_in_the_evidence_and_the_cause_have_the_trainers_names(tmp_path: Path) -> None:
    change: Change = {"completions/clipped_ratio": lambda i: 0.7 - 0.001 * i}
    found = examined(tmp_path, history("grpo", change)).diagnosis.causes[0]
    assert "cut off at max_completion_length" in found.evidence
    assert "longer than `max_completion_length` allows" in found.explanation


def test_a_metric_that_is_read_in_two_units_is_named_once(tmp_path: Path) -> None:
    lost: Change = {name: lambda i: math.nan if i > 30 else 0.01 * i for name in ("kl", "entropy")}
    found = examined(tmp_path, history("grpo", lost)).diagnosis.causes[0]
    assert found.evidence.startswith("entropy, kl at step 31")


def test_metrics_in_the_evidence_have_the_trainers_names(tmp_path: Path) -> None:
    rows = history("reward", {"loss": lambda i: math.nan if i > 30 else 0.6})
    (found,) = examined(tmp_path, rows).diagnosis.findings
    assert (found.mode.name, found.evidence.split(" at ")[0]) == ("not-finite", "loss")


def test_names_in_cures_are_those_of_the_trainer() -> None:
    text = "Raise `group.kl_coef`, lower optim.learning_rate and `reward.epochs: 1`, take fewer epochs, beta 1."
    assert renamed(text, "group") == (
        "Raise `beta`, lower learning_rate and `reward.num_train_epochs: 1`, take fewer epochs, beta 1."
    )


def test_our_own_logs_are_not_asked_what_trl_logs() -> None:
    asked = [detector for detector in DETECTORS if detector.evidence is Foreign]
    assert len(asked) >= 10
    assert not any(detector.reads(Log("ppo", "here")) for detector in asked)
