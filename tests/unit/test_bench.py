"""The scripts that measure: which rows and which training pairs their sentences are about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench.common import Run
from bench.hh_local import MODELS, accuracy_table
from bench.verdicts import proxy_change


def policy_run(folder: Path, steps: list[int]) -> Run:
    """A run whose PPO gained one point on each prompt of step 9 and lost ten on those of earlier steps."""
    artifact = folder / "artifacts" / "ppo-0"
    artifact.mkdir(parents=True)
    rows = [
        {"step": step, "reward_before": float(n), "reward_after": float(n) + (1 if step == 9 else -10)}
        for n, step in enumerate(steps)
    ]
    (artifact / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stages = {"ppo": {"artifact": "ppo-0", "metrics": {"n": 4}}}
    return Run({"dir": str(folder / "run"), "stages": stages}, 0.0, 0.0)


@pytest.mark.parametrize("steps", [[4, 4, 9, 9, 9, 9], [9, 9, 9, 9, 4, 4]], ids=["in order", "out of order"])
def test_the_change_of_the_reward_is_that_of_the_final_evaluation(steps: list[int], tmp_path: Path) -> None:
    assert proxy_change(policy_run(tmp_path, steps))["gain"] == 1.0


def test_samples_that_are_not_of_the_final_evaluation_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not those of the final evaluation"):
        proxy_change(policy_run(tmp_path, [4, 9, 9, 9]))


def test_each_model_stands_beside_baselines_that_learned_from_its_own_pairs() -> None:
    def facts(accuracy: float, rival: float) -> dict[str, Any]:
        def share(value: float) -> dict[str, float]:
            return {"accuracy": value, "accuracy_low": value - 0.02, "accuracy_high": value + 0.02}

        return {"n": 100, **share(accuracy), "baselines": {"length_only": share(rival), "bag_of_words": share(rival)}}

    reports = {
        stage: {
            **facts(0.6 + number / 100, 0.5 + number / 100),
            "baseline_pairs": 1000 * (number + 1),
            "chance": 0.5,
            "ece": 0.03,
            "slices": {"source": {"harmless": facts(0.7, 0.4)}},
        }
        for number, stage in enumerate(MODELS)
    }
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in accuracy_table(reports).splitlines()]
    assert [row[:4] for row in cells[2:]] == [
        ["reward model", "1,000", "all", "100"],
        ["", "", "harmless", "100"],
        ["judge", "2,000", "all", "100"],
        ["", "", "harmless", "100"],
        ["encoder", "3,000", "all", "100"],
        ["", "", "harmless", "100"],
    ]
    assert [row[6] for row in cells[2:]][::2] == ["50.0 % (48.0–52.0)", "51.0 % (49.0–53.0)", "52.0 % (50.0–54.0)"]
    assert {len(row) for row in cells} == {9}
