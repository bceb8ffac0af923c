"""The report that the pipeline writes begins with what the doctor says of the run, whatever state the run is in."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from tests.unit.tracking.fabricated import fabricate_run

from assay.cli.main import app
from assay.pipeline import runner

Line = dict[str, Any]


def words(html: str) -> str:
    """The visible text of a page."""
    body = html[html.index("</style>") :]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def told(run: Path) -> str:
    return words(runner.write_report(run).read_text(encoding="utf-8"))


def rewritten(run: Path, kind: str, change: Callable[[int, Line], Line]) -> None:
    """The metrics of a stage, every line changed; `change` takes the line's number and its values."""
    (file,) = run.parent.glob(f"artifacts/{kind}-*/metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(change(number, line)) + "\n" for number, line in enumerate(lines)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return fabricate_run(tmp_path)


def test_a_healthy_run_is_green_in_colour_and_word(run: Path) -> None:
    html = runner.write_report(run).read_text(encoding="utf-8")
    assert '<div class="verdict good">' in html
    assert "Green. Nothing was found that speaks against it." in words(html)
    assert "What was looked for and not found" in words(html)
    assert "What is wrong" not in words(html)


def runaway(number: int, line: Line) -> Line:
    return line | {"objective/kl": 2.0 * number}


def loops(number: int, line: Line) -> Line:
    return line | {"text/repetition": 0.02 + 0.02 * number}


def lost(number: int, line: Line) -> Line:
    return line | {"policy/loss": None, "non_finite": {"policy/loss": "nan"}} if number > 20 else line


@pytest.mark.parametrize(
    ("fault", "title", "evidence", "page"),
    [
        (runaway, "The KL to the reference runs away", "Seen KL 5", "kl-blow-up"),
        (loops, "Answers repeat themselves", "Seen Share of repeated 4-grams 0.", "repetition"),
        (lost, "NaN or infinity", "Seen policy/loss at step 22;", "not-finite"),
    ],
)
def test_an_injected_fault_is_named_with_evidence_and_page(
    run: Path, fault: Callable[[int, Line], Line], title: str, evidence: str, page: str
) -> None:
    (manifest,) = run.parent.glob("artifacts/ppo-*/manifest.json")
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(facts | {"config": {"kl_target": 6.0, "kl_coef": 0.05}}))
    rewritten(run, "ppo", fault)
    text = told(run)
    assert "Red. It is broken, or cannot be trusted." in text
    first = text[text.index("What is wrong") : text.index("More docs/doctor/")]
    assert title in first
    assert evidence in first
    assert "What you see" in text[text.index(f"More docs/doctor/{page}.md") :]


def test_a_final_number_that_speaks_against_a_run_is_enough(tmp_path: Path) -> None:
    losing = {"win_rate": 0.3, "win_rate_low": 0.25, "win_rate_high": 0.35}
    text = told(fabricate_run(tmp_path, metrics={"ppo": losing}))
    assert "ppo answers worse than sft" in text
    assert "The answers are worse than before the training" in text


def test_gaps_are_said_and_the_rest_is_checked(run: Path) -> None:
    rewritten(run, "ppo", lambda number, line: {k: v for k, v in line.items() if not k.startswith("val/")})
    text = told(run)
    assert "Green." in text
    assert "ppo: the log has no val/explained_variance" in text
    assert "more could not be checked" in text


def test_a_run_at_work_is_reported_as_far_as_it_is(tmp_path: Path) -> None:
    run = fabricate_run(tmp_path, ("data", "sft"))
    summary = json.loads((run / "summary.json").read_text())
    ppo = {"kind": "ppo", "artifact": "ppo-0123456789ab", "config": {}}
    (run / "summary.json").write_text(json.dumps(summary | {"unfinished": {"ppo": ppo}}))
    for kind in ("ppo", "reward"):  # the latter is another run's
        folder = tmp_path / "artifacts" / f".{kind}-0123456789ab.partial"
        folder.mkdir()
        (folder / "metrics.jsonl").write_text('{"step": 1, "time": 0.5, "objective/kl": 0.0}\n{"step": 2, "ti')
    text = told(run)
    assert "ppo is not finished: only what it has logged so far is looked at" in text
    assert "reward is not finished" not in text


def test_numbers_that_are_none_cost_the_checks_that_read_them_and_no_more(run: Path) -> None:
    (file,) = run.parent.glob("artifacts/reward-*/manifest.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"config": {"batch_size": "many"}}))
    text = told(run)
    assert "Green." in text
    assert "reward: its numbers are not what they should be (ValueError" in text


def test_a_failed_examination_still_leaves_a_report_that_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> None:
        raise RuntimeError("odd files")

    monkeypatch.setattr("assay.doctor.examination.examination", fails)
    text = told(run)
    assert "No verdict. The doctor could not examine this run (RuntimeError: odd files)." in text
    assert "ppo answers better than sft" in text


def test_the_command_writes_the_same_page_as_the_runner(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_runner = runner.write_report(run).read_bytes()
    (run / "report.html").unlink()
    app(["report", str(run)], standalone_mode=False)
    assert Path(capsys.readouterr().out.strip()).read_bytes() == by_runner


def test_the_examination_of_a_long_run_takes_seconds(run: Path) -> None:
    rewritten(run, "ppo", lambda number, line: line)
    (file,) = run.parent.glob("artifacts/ppo-*/metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    long = ({**line, "step": 32 * turn + line["step"]} for turn in range(60) for line in lines)
    file.write_text("".join(json.dumps(line) + "\n" for line in long))
    runner.write_report(run)
    began = time.process_time()
    runner.write_report(run)
    assert time.process_time() - began < 5
