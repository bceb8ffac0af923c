"""The stage's link to the run: logs, samples, checkpoints and progress in the working folder of its artifact."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from assay.errors import NotFiniteError, TrainingError
from assay.pipeline.artifacts import CHECKPOINT
from assay.tracking.metrics import MetricsLog, Mirror, SamplesLog
from assay.tracking.progress import ProgressDisplay, show_progress

if TYPE_CHECKING:
    from torch import Tensor

    from assay.pipeline.watch import Watch
    from assay.stages.context import Remedy

T = TypeVar("T")


class StageContext:
    """`stages.context.RunContext` over a folder. A checkpoint also keeps the seconds worked so far."""

    def __init__(
        self,
        *,
        seed: int,
        folder: Path,
        device: str,
        metrics: MetricsLog,
        texts: SamplesLog,
        watch: Watch,
        stop: Callable[[], bool],
    ) -> None:
        self.seed, self.folder, self.device = seed, folder, device
        self.watch = watch
        self._metrics, self._texts, self._stop = metrics, texts, stop
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of work, those before a kill included as far as a checkpoint remembers them."""
        return time.monotonic() - self._began

    @property
    def remedy(self) -> Remedy:
        return self.watch.remedy

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.remedy.times:
            metrics = {**metrics, "doctor/lr_factor": self.remedy.rate}
        self._metrics.log(step, metrics)
        self.watch.see(step, metrics)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._texts.log(step, rows)

    def progress(self, total: int, description: str) -> AbstractContextManager[ProgressDisplay]:
        self.watch.monitor.total = total
        return show_progress(total, description)

    def checkpoint(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        from assay.models.checkpoint import save_checkpoint

        if self.watch.may_save(step):
            facts = {"step": step, "seconds": self.seconds, "corrections": self.remedy.times, "stage": dict(state)}
            save_checkpoint(self.folder / CHECKPOINT, tensors, facts)
            self.watch.saved(step)

    def restore(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        from assay.models.checkpoint import load_checkpoint

        saved = load_checkpoint(self.folder / CHECKPOINT)
        tensors, state = saved or ({}, {"step": -1, "seconds": 0.0, "corrections": 0})
        self._began = time.monotonic() - state["seconds"]
        self._metrics.truncate_after(state["step"])
        self._texts.truncate_after(state["step"])
        self.watch.resume(state["step"], corrections=state["corrections"])
        return (state["step"], tensors, state["stage"]) if saved else None

    def trouble(self) -> TrainingError | None:
        return self.watch.trouble()

    def interrupted(self) -> bool:
        return self._stop()

    def attempts(self, work: Callable[[], T]) -> T:
        """Work that is done anew, from what is on the disk, whenever it was corrected."""
        from assay.pipeline.watch import Again

        while True:
            try:
                return work()
            except Again:
                continue
            except NotFiniteError as error:
                if stopped := self.watch.not_finite(error):
                    raise stopped from error


@contextmanager
def stage_context(
    folder: Path,
    *,
    seed: int,
    device: str,
    mirrors: Sequence[Mirror],
    watch: Watch,
    stop: Callable[[], bool],
) -> Iterator[StageContext]:
    """A context whose files are closed whatever happens."""
    with ExitStack() as stack:
        texts = stack.enter_context(closing(SamplesLog(folder / "samples.jsonl", mirrors)))
        stack.enter_context(closing(watch))
        metrics = stack.enter_context(MetricsLog(folder / "metrics.jsonl", mirrors))
        yield StageContext(
            seed=seed, folder=folder, device=device, metrics=metrics, texts=texts, watch=watch, stop=stop
        )
