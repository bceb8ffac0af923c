"""What the run does about what the monitor of a stage finds: tell, stop, or correct.

findings.jsonl, in the stage's folder      what was found at which step: said, stopped, corrected
checkpoint/older/<step>/                   with `act: correct`: two checkpoints that are older than any fresh suspicion

A correction is a resume: the stage begins anew from the newest checkpoint up to which its log shows no trouble, or from
its start, and is told how often it was corrected. All of it lies on the disk, so a run that is killed meanwhile ends
the same; what was corrected stays on record however far back a later correction goes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from assay.doctor.config import Act
from assay.doctor.cure import agreeing, written
from assay.doctor.finding import Finding
from assay.doctor.monitor import Monitor, window
from assay.doctor.reward import NOT_FINITE
from assay.errors import NotFiniteError, TrainingError
from assay.pipeline.artifacts import CHECKPOINT, FINDINGS
from assay.stages.context import Remedy
from assay.tracking.metrics import JsonLines, read_json_lines, read_metrics

MOST = 3
"""Corrections of one stage: what three could not mend, a fourth will not."""
START = -1
"""The step of a stage that has no checkpoint."""


class Again(Exception):  # noqa: N818  (no error: the stage begins anew)
    """The stage was corrected, and its folder holds what it goes on from."""


class Watch:
    """The monitor of one stage, and what follows from its findings."""

    def __init__(
        self,
        folder: Path,
        *,
        kind: str,
        where: str,
        config: Mapping[str, Any],
        act: Act,
        say: Callable[[str], None],
        proposed: Mapping[str, Any] | None = None,
    ) -> None:
        """`proposed` are the cures that were told before the run: of these keys they are the cure now, too."""
        self.where, self.act, self.say, self.proposed = where, act, say, proposed or {}
        self.monitor = Monitor(kind, where, config, say=self._found)
        self.remedy = Remedy()
        self._metrics, self._checkpoint = folder / "metrics.jsonl", folder / CHECKPOINT
        self._findings = JsonLines(folder / FINDINGS)
        self._step = self._saved = START

    def close(self) -> None:
        self._findings.close()

    def resume(self, step: int, *, corrections: int = 0) -> None:
        """The stage goes on after a step, where its metrics end, from a checkpoint that knows of some corrections."""
        self._step = self._saved = step
        self._findings.truncate_after(step, but=_corrected)
        rows = list(read_json_lines(self._findings.path))
        corrected = [row["step"] for row in rows if _corrected(row)]
        self.remedy = Remedy(len(corrected), len(corrected) - corrections)
        self.monitor.restart(
            read_metrics(self._metrics),
            after=corrected[-1] if corrected else START,
            said={row["mode"] for row in rows if row["action"] == "said"},
        )

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of the stage's metrics."""
        self._step = step
        self.monitor.see(step, metrics)

    def may_save(self, step: int) -> bool:
        """Make ready for a checkpoint; False where it must not replace the last one, because the stage is suspect."""
        if self.act == "correct":
            if self.monitor.suspects:
                self.say(f"{self.where}: no checkpoint of step {step}, which is under suspicion; {self._kept()}")
                return False
            self._keep_older(step)
        return True

    def saved(self, step: int) -> None:
        """There is a new checkpoint."""
        self._saved = step

    def trouble(self) -> TrainingError | None:
        """Why the stage must stop, with a checkpoint. Raises `Again` where it was corrected instead."""
        if self.monitor.fatal is None or self.act == "warn":
            return None
        fatal = agreeing(self.monitor.fatal, self.proposed)
        if self._correct(fatal):
            raise Again
        self._record("stopped", fatal, self._step)
        resume = f"{self.where} goes on from its checkpoint with doctor.act=warn"
        corrects = "" if self.act == "correct" else ", and corrects itself, from its start, with doctor.act=correct"
        return TrainingError(
            f"{self.where} stopped after step {self._step}: {fatal.mode.title.lower()}: {fatal.evidence}",
            hint=f"{self._cure(fatal)} {resume}{corrects} ({fatal.mode.page})",
        )

    def not_finite(self, error: NotFiniteError) -> TrainingError | None:
        """What to raise for an error that came from within the stage; nothing, where it was corrected."""
        finding = Finding(NOT_FINITE, self.where, error.what, sureness="certain", cure=error.hint)
        if self._correct(finding):
            return None
        self._record("stopped", finding, self._step)
        return TrainingError(
            f"{self.where} stopped after step {self._step}: {error.what}", hint=f"{error.hint}; {self._kept()}"
        )

    def _found(self, finding: Finding, step: int) -> None:
        finding = agreeing(finding, self.proposed)
        self._record("said", finding, step)
        self.say(
            f"{self.where} step {step}: {finding.mode.title} ({finding.severity}, {finding.sureness}): "
            f"{finding.evidence}. {self._cure(finding)} ({finding.mode.page})"
        )

    def _correct(self, finding: Finding) -> bool:
        """Go back, if that is wanted and has not been done too often: what the stage finds when it begins anew."""
        if self.act != "correct" or self.remedy.times >= MOST:
            return False
        seen = self._step
        self._go_back(lambda step: self.monitor.sound(step, finding.mode))
        self._record("corrected", finding, self._saved, seen_at=seen)
        self.say(
            f"{self.where} step {seen}: {finding.mode.title}: {finding.evidence}. Correction {self.remedy.times + 1} "
            f"of {MOST}: back to {'the start' if self._saved == START else f'step {self._saved}'}, a third of the "
            "learning rate, and more weight for the KL where there is one"
        )
        return True

    def _record(self, action: str, finding: Finding, step: int, **more: Any) -> None:
        self._findings.append([{"step": step, "action": action, **finding.facts(), **more}])

    def _kept(self) -> str:
        return "there is no checkpoint" if self._saved == START else f"the checkpoint of step {self._saved} is kept"

    def _cure(self, finding: Finding) -> str:
        """In words, and as settings of this stage."""
        given = " ".join(written(finding.change))
        return f"{finding.advice} Here: {given}." if given else finding.advice

    def _older(self) -> list[Path]:
        return sorted((self._checkpoint / "older").glob("*"), key=lambda folder: int(folder.name))

    def _keep_older(self, step: int) -> None:
        """Keep the last checkpoint beside the one to come, unless one is kept that is not yet above suspicion."""
        older = self._older()
        if self._saved != START and (not older or int(older[-1].name) <= step - window(step)):
            kept = self._checkpoint / "older" / str(self._saved)
            kept.mkdir(parents=True, exist_ok=True)
            for file in [file for file in self._checkpoint.iterdir() if file.is_file()]:
                if not (kept / file.name).exists():
                    os.link(file, kept / file.name)
            for folder in older[:-1]:
                shutil.rmtree(folder)

    def _go_back(self, sound: Callable[[int], bool]) -> None:
        """Make the newest checkpoint of a step that is sound the last one; without any, there is none."""
        if self._saved == START or sound(self._saved):
            return
        good = [folder for folder in self._older() if sound(int(folder.name))]
        if good:
            for file in good[-1].iterdir():
                os.replace(file, self._checkpoint / file.name)
            shutil.rmtree(self._checkpoint / "older")
            self._saved = int(good[-1].name)
        else:
            shutil.rmtree(self._checkpoint)
            self._saved = START


def _corrected(row: Mapping[str, Any]) -> bool:
    """Whether a line of findings.jsonl records a correction, which outlives the steps that it took back."""
    return row["action"] == "corrected"
