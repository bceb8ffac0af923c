"""The logs of a stage survive crashes, odd numbers and resumes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import StorageError
from assay.tracking.metrics import MetricsLog, SamplesLog, read_json_lines, read_metrics, series

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
METRICS = st.dictionaries(st.sampled_from(["train/loss", "objective/kl", "val/loss", "größe"]), FLOATS)


class Clock:
    """Seconds under the test's control."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


@given(history=st.lists(METRICS, max_size=6))
def test_every_float_comes_back_as_it_was_logged_and_every_line_is_strict_json(
    history: list[dict[str, float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step, metrics in enumerate(history):
            log.log(step, metrics)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    lines = read_metrics(path)
    assert [line.step for line in lines] == list(range(len(history)))
    for line, metrics in zip(lines, history, strict=True):
        assert line.values.keys() == metrics.keys()
        assert all(same(line.values[name], value) for name, value in metrics.items())


def test_a_number_that_is_not_finite_is_null_and_named(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", clock=Clock())
    log.log(3, {"policy/loss": math.nan, "train/grad_norm": math.inf, "objective/kl": 5.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 3,
        "time": 0.0,
        "policy/loss": None,
        "train/grad_norm": None,
        "objective/kl": 5.5,
        "non_finite": {"policy/loss": "nan", "train/grad_norm": "inf"},
    }


def test_each_line_is_on_disk_before_the_next_step(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(3):
        log.log(step, {"train/loss": 1.0})
        assert [line.step for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(step + 1))


def test_a_log_cut_at_any_byte_keeps_its_whole_lines_and_can_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, clock=Clock()) as log:
        log.log(1, {"größe": 1.0})
        log.log(2, {"größe": 2.0})
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        whole = [1, 2] if cut == len(content) else [1] if cut >= first else []
        assert [line.step for line in read_metrics(path)] == whole
        with MetricsLog(path) as log:
            log.log(9, {"größe": 9.0})
        assert [line.step for line in read_metrics(path)] == [*whole, 9]


def test_a_resumed_log_equals_one_that_was_never_interrupted(tmp_path: Path) -> None:
    def work(log: MetricsLog, clock: Clock, steps: range) -> None:
        for step in steps:
            clock.now += 2.0
            log.log(step, {"train/loss": 1.0 / step})

    straight, clock = tmp_path / "straight.jsonl", Clock()
    work(MetricsLog(straight, clock=clock), clock, range(1, 9))

    crashed, clock = tmp_path / "crashed.jsonl", Clock()
    work(MetricsLog(crashed, clock=clock), clock, range(1, 7))  # the last checkpoint was at step 4
    clock.now += 3600.0  # a pause is no work
    log = MetricsLog(crashed, clock=clock)
    clock.now += 60.0  # and neither is loading the checkpoint
    log.truncate_after(4)
    work(log, clock, range(5, 9))
    assert crashed.read_bytes() == straight.read_bytes()
    assert not crashed.with_name("crashed.jsonl.tmp").exists()


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time": 0}\n{"step": oops}\n{"step": 3, "time": 0}\n')
    with pytest.raises(StorageError, match=r"metrics\.jsonl line 2: not valid JSON"):
        read_metrics(path)
    path.write_text("[1, 2]\n")
    with pytest.raises(StorageError, match="line 1: not a JSON object"):
        read_metrics(path)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"step": 2}', "its time is None"),
        ('{"step": "2", "time": 0}', "its step is '2'"),
        ('{"step": 9223372036854775808, "time": 0}', "its step is 9223372036854775808"),
        ('{"step": 2, "time": NaN}', "its time is nan"),
        ('{"step": 2, "time": 0, "loss": [1]}', "must be a string or a real number"),
        ('{"step": 2, "time": 0, "loss": null, "non_finite": 3}', "'int' object has no attribute"),
    ],
)
def test_a_line_that_is_no_line_of_metrics_is_named_or_told_and_left_out(tmp_path: Path, line: str, why: str) -> None:
    path, odd = tmp_path / "metrics.jsonl", list[StorageError]()
    path.write_text(f'{{"step": 1, "time": 0}}\n{line}\n{{"step": 3, "time": 0}}\n')
    with pytest.raises(StorageError, match=r"metrics\.jsonl line 2: "):
        read_metrics(path)
    assert [line.step for line in read_metrics(path, odd.append)] == [1, 3]
    (error,) = odd
    assert why in error.what


def test_a_write_that_the_system_refuses_is_one_clear_error_and_leaves_whole_lines(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="file size limits stand in for a full disk; POSIX only")
    path = tmp_path / "samples.jsonl"
    log = SamplesLog(path)
    log.log(1, [{"prompt": "fits"}])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"samples\.jsonl: File too large\n  hint: Free some disk space"):
            log.log(2, [{"prompt": "does not fit" * 20}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.close()
    assert list(read_json_lines(path)) == [{"step": 1, "prompt": "fits"}]


def test_reserved_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'time'"):
        MetricsLog(tmp_path / "metrics.jsonl").log(1, {"time": 3.0})


def test_series_picks_the_lines_that_have_the_metric(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.log(1, {"train/loss": 0.7})
        log.log(2, {"train/loss": 0.6, "eval/accuracy": 0.55})
        log.log(3, {"eval/accuracy": 0.65})
    assert series(read_metrics(tmp_path / "metrics.jsonl"), "eval/accuracy") == ([2, 3], [0.55, 0.65])
    assert series(read_metrics(tmp_path / "metrics.jsonl"), "no/such") == ([], [])


def test_samples_keep_their_text_and_lose_only_later_steps(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    log = SamplesLog(path)
    awkward = 'line\nbreak, "quotes", \u2028, ünïcode and a lone \\ backslash'
    log.log(8, [{"prompt": awkward, "reward_after": math.nan, "truth_after": None}, {"prompt": "b"}])
    log.log(16, [{"prompt": "later"}])
    log.truncate_after(8)
    log.log(12, [{"prompt": "again"}])
    assert list(read_json_lines(path)) == [
        {"step": 8, "prompt": awkward, "reward_after": None, "truth_after": None},
        {"step": 8, "prompt": "b"},
        {"step": 12, "prompt": "again"},
    ]


def test_sinks_see_what_the_file_sees(tmp_path: Path) -> None:
    seen: list[tuple[object, ...]] = []

    class Spy:
        def log(self, step: int, metrics: object) -> None:
            seen.append(("log", step, metrics))

        def text(self, step: int, name: str, rows: object) -> None:
            seen.append(("text", step, name, rows))

    MetricsLog(tmp_path / "metrics.jsonl", [Spy()]).log(1, {"objective/kl": 2})
    samples = SamplesLog(tmp_path / "samples.jsonl", [Spy()])
    samples.log(2, [{"prompt": "p"}])
    samples.log(3, [])  # an empty table is nothing to show
    assert seen == [("log", 1, {"objective/kl": 2.0}), ("text", 2, "samples", [{"prompt": "p"}])]
