"""Methods beside each other: seeds are gathered, best-of-n gives a point for every n, intervals are Student's."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from assay.tracking.report.charts import Mark, scatter_chart
from assay.tracking.report.frontier import frontier_section, mean_interval, methods
from assay.tracking.report.run_files import RunFiles, StageFiles


def stage(name: str, kind: str, **metrics: float) -> StageFiles:
    manifest = {"wall_s": 60.0, "peak_rss_mb": 800.0}
    return StageFiles(name, kind, f"{name}-0", metrics, manifest=manifest)


def run_of(*stages: StageFiles) -> RunFiles:
    return RunFiles(Path(), {"run": "compare"}, "", {one.id: one for one in stages})


PPO = [stage(f"ppo-{n}", "ppo", kl=2.0 + n, truth_after=15.0 + n, win_rate=0.8, episodes=3584) for n in (1, 2, 3)]
GRPO = stage("grpo-2", "group", kl=4.0, truth_after=16.5, win_rate=0.85)


def test_seeds_of_one_stage_are_one_method_and_a_lone_stage_keeps_its_name() -> None:
    found = methods(run_of(*PPO, GRPO))
    assert [(method.name, method.kl) for method in found] == [("ppo", [3.0, 4.0, 5.0]), ("grpo-2", [4.0])]


def test_one_method_alone_has_no_section() -> None:
    assert frontier_section(run_of(*PPO)) is None


def test_the_table_says_means_with_their_intervals_and_what_a_seed_cost() -> None:
    section = frontier_section(run_of(*PPO, GRPO))
    assert section is not None
    table = section.blocks[1]
    # t(0.975, 2) = 4.3027; standard error 1/√3: reach 2.484
    row = [text.replace("\u00a0", " ") for text in table.rows[0]]  # type: ignore[union-attr]
    assert row[:3] == ["ppo", "3", "17 (14.5 to 19.5)"]
    assert row[4:] == ["4 (1.52 to 6.48)", "3,584 answers", "1 min 00 s", "800 MB"]


def test_the_interval_of_a_mean_is_students() -> None:
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert mean_interval([5.0]) == (5.0, 5.0, 5.0)


def test_best_of_n_is_a_point_for_every_n() -> None:
    sizes = {f"best_of_{n}/{name}": n / 10 for n in (1, 2, 4) for name in ("kl", "truth", "win_rate")}
    found = methods(run_of(*PPO, stage("bestof", "bestof", **sizes)))
    assert [method.name for method in found][1:] == ["bestof, n = 1", "bestof, n = 2", "bestof, n = 4"]
    assert found[2].truth == [0.2]


def test_names_in_the_picture_do_not_overlap() -> None:
    marks = [Mark(f"m{n}", 1.0 + n, 5.0, 4.0, 6.0) for n in range(5)]
    svg = str(scatter_chart(marks, title="t"))
    heights = [float(part.split('y="')[1].split('"')[0]) for part in svg.split("<text") if ">m" in part]
    assert len(heights) == 5
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 14
