"""`assay report` and the pictures for sinks."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from assay.cli.main import app
from assay.tracking.plots import show, stage_plots


@pytest.mark.parametrize("by", ["folder", "name"])
def test_assay_report_prints_the_path_of_the_report(
    by: str, full_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    which = [str(full_run)] if by == "folder" else [full_run.name, "--runs-dir", str(full_run.parent)]
    app(["report", *which], standalone_mode=False)
    assert capsys.readouterr().out.strip() == str(full_run / "report.html")
    assert "answers better" in (full_run / "report.html").read_text()


def test_json_output_is_one_object(full_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["report", str(full_run), "--json"], standalone_mode=False)
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"run": full_run.name, "report": str(full_run / "report.html")}


def test_a_wrong_name_is_one_error_with_a_hint_and_exit_code_2(
    full_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        app(["report", "nothing", "--runs-dir", str(full_run.parent)])
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[0].endswith("nothing: no summary.json, so this is not the folder of a run")
    assert shown.err.splitlines()[1].startswith("hint: ")


def blue(png: bytes) -> int:
    """Pixels in the first colour that is drawn with."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return int((pixels[..., 2] > pixels[..., 0] + 40).sum())


def test_a_stage_leaves_its_curves_and_a_reward_model_its_reliability_as_pictures(
    full_run: Path, tmp_path: Path
) -> None:
    artifacts = full_run.parent / "artifacts"
    (reward,), (sft,) = artifacts.glob("reward-*"), artifacts.glob("sft-*")
    plots = stage_plots("reward", reward)
    assert list(plots) == ["curves", "reliability"]
    bins = json.loads((reward / "accuracy.json").read_text())["reliability"]["bins"]
    assert blue(plots["reliability"]) > 100 * len(bins)  # a dot of its own for each bin
    curves = stage_plots("sft", sft)
    assert list(curves) == ["curves"]
    assert blue(curves["curves"]) > 500
    assert stage_plots("evaluate", tmp_path) == {}


def test_a_curve_of_one_point_is_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 0.1, "train/loss": 0.5}\n')
    assert stage_plots("sft", tmp_path) == {}


def test_the_pictures_go_to_every_sink_at_the_last_step(tmp_path: Path) -> None:
    rows = [{"step": step, "time": step / 10, "train/loss": 1 / step} for step in (3, 6, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen: list[tuple[int, str, bytes]] = []
    sink = SimpleNamespace(figure=lambda *shown: seen.append(shown))
    show([sink, sink], "sft", tmp_path)  # type: ignore[list-item]
    assert [(step, name) for step, name, _ in seen] == [(9, "curves")] * 2
    assert seen[0][2] == stage_plots("sft", tmp_path)["curves"]
