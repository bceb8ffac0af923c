"""Run a recipe: make what does not exist yet, resume what is unfinished, and say what came of it.

A run killed at any moment and started again goes on where its last checkpoint was; see artifacts.py for the folders.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.config import did_you_mean
from assay.data.prepared import Prepared
from assay.doctor.config import Act
from assay.errors import Interrupted, UsageError
from assay.pipeline import environment
from assay.pipeline.artifacts import Artifact, Store, new_folder, storage_errors, write_json, write_text
from assay.pipeline.context import StageContext, stage_context
from assay.pipeline.graph import ancestors, descendants
from assay.pipeline.inputs import check_counts, make_data, report_of, stage_inputs
from assay.pipeline.lock import locked
from assay.pipeline.recipe import NamedRecipe
from assay.pipeline.steps import DATA, Step, parents_of, steps
from assay.tracking import sinks

if TYPE_CHECKING:
    from assay.pipeline.watch import Watch

Stage = Callable[[Any, Any, Any], Mapping[str, Any]]
"""`run(config, inputs, ctx) -> metrics` of a stage."""


def load_stage(kind: str) -> Stage:
    """The `run` of assay.stages.<kind>; imported when the stage starts, because torch comes with it."""
    return importlib.import_module(f"assay.stages.{kind}").run


def examined(run_dir: Path) -> dict[str, Any]:
    """What the doctor says of a run; its libraries are imported now."""
    from assay.doctor.examination import examination

    try:
        return examination(run_dir).facts()
    except Exception as error:  # whatever lies in the folder: a report that says so is better than none
        return {"failed": f"{type(error).__name__}: {error}"}


def write_report(run_dir: Path) -> Path:
    """report.html of a run, which begins with what the doctor says of it."""
    from assay.tracking import report

    return report.write_report(run_dir, examined(run_dir))


def last_words(run_dir: Path) -> str:
    """Write the report of a run that has ended; returns the doctor's verdict in one line."""
    from assay.tracking import report

    facts = examined(run_dir)
    report.write_report(run_dir, facts)
    if "failed" in facts:
        return f"doctor: the run could not be examined ({facts['failed']})"
    causes = "; ".join(f"{cause['title']} ({cause['where']})" for cause in facts["findings"])
    more = f". Why, and what to change: assay doctor {run_dir}" if causes else ""
    return f"doctor: {facts['verdict']}, {causes or facts['in_words']}{more}"


def show_plots(to: Sequence[sinks.Sink], kind: str, folder: Path) -> None:
    """The stage's pictures in every sink; their libraries are imported now."""
    from assay.tracking import plots

    plots.show(to, kind, folder)


def check_up(
    named: NamedRecipe, steps: Sequence[Step], store: Store, data: Prepared, folder: Path, request: Request
) -> None:
    """UsageError where the doctor finds the run broken before it begins; torch is imported now."""
    from assay.pipeline import checkup

    checkup.before_run(named, steps, store, data, folder, request)


def check_despite(names: Sequence[str]) -> None:
    """UsageError for a mode that the doctor does not know, before anything is made."""
    from assay.pipeline import checkup

    checkup.check_names(names)


def watch(step: Step, folder: Path, act: Act, say: Callable[[str], None], run_dir: Path) -> Watch:
    """The monitor of a step; its libraries are imported now."""
    from assay.doctor.cure import proposed
    from assay.pipeline.watch import Watch

    own = {"kind": step.identity.kind, "where": step.id, "config": step.config}
    return Watch(folder, **own, act=act, say=say, proposed=proposed(run_dir))


@dataclass(frozen=True, slots=True)
class Request:
    """What to run of a recipe, and how the user asks to stop."""

    only: str | None = None
    """One stage, and what it needs that does not exist yet."""
    start: str | None = None
    """Make this stage and all that read it anew."""
    stop: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr)
    stage: Callable[[str], Stage] = load_stage
    report: Callable[[Path], str | None] = last_words
    """Write the report; returns what is said last."""
    before: Callable[[NamedRecipe, Sequence[Step], Store, Prepared, Path, Request], None] = check_up
    despite: Sequence[str] = ()
    """Modes that the doctor may find without the run being refused."""


def run(named: NamedRecipe, request: Request) -> dict[str, Any]:
    """Run the recipe; returns the summary that is also written to summary.json."""
    if request.despite:
        check_despite(request.despite)
    plan = selected(named, request)
    recipe = selected(named, replace(request, only=None), fetch=False) if request.only else plan
    environment.device(named.recipe.device)
    folder, store = named.run_dir, Store(Path(named.recipe.runs_dir))
    after = "what is finished is kept, and the same command resumes the rest"
    with ExitStack() as stack:
        stack.enter_context(storage_errors(folder, after=after))
        stack.enter_context(new_folder(folder, (store.root / ".locks", store.root, store.root.parent)))
        stack.enter_context(locked(folder / "run.lock", f"the run {folder}"))
        write_text(folder / "recipe.yaml", named.recipe.yaml())
        _clear(named, request, plan, store)
        run_of = _Run(named, request, plan, recipe, store, folder)
        for step in plan:
            if request.stop():
                raise Interrupted(f"stopped before {step.id}; what is finished is kept")
            run_of.step(step)
            if step.node is None:
                request.before(named, plan, store, Prepared.load(run_of.artifacts[DATA].folder), folder, request)
        run_of.write_summary()
        if said := request.report(folder):
            request.say(said)
    return run_of.summary()


def selected(named: NamedRecipe, request: Request, *, fetch: bool = True) -> list[Step]:
    """The steps a request is about, in order. UsageError for a stage that the recipe has not."""
    known = [DATA, *(node.id for node in named.graph)]
    for name in filter(None, (request.only, request.start)):
        if name not in known:
            raise UsageError(f'the recipe has no stage "{name}"', hint=did_you_mean(name, known))
    wanted = ancestors(named.graph, request.only) if request.only else set(known)
    return steps(named, wanted, fetch=fetch)


@dataclass
class _Run:
    """One run in progress: the artifacts so far, by stage."""

    named: NamedRecipe
    request: Request
    plan: Sequence[Step]
    recipe: Sequence[Step]
    """Every step of the recipe: what an earlier run finished belongs to the run, though this one may not ask for it."""
    store: Store
    folder: Path
    began: float = field(default_factory=time.monotonic)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    data: Prepared | None = None
    memory: environment.PeakMemory = field(default_factory=environment.PeakMemory)

    def __post_init__(self) -> None:
        planned = {step.id for step in self.plan}
        for step in self.recipe:
            if step.id not in planned and (found := self.store.get(step.identity.id)):
                self.artifacts[step.id] = found

    def step(self, step: Step) -> None:
        """Take the artifact, or make it."""
        found = self.store.get(step.identity.id)
        if found is not None:
            self.request.say(f"{step.id}: exists already as {found.id}")
            self.artifacts[step.id] = found
            if step.node is None:
                check_counts(found.manifest["metrics"], self.plan)
            return
        self.write_summary()
        with self.store.writing(step.identity.id) as folder:
            self.artifacts[step.id] = self.store.get(step.identity.id) or self._make(step, folder)
        self.write_summary()

    def write_summary(self) -> None:
        """summary.json, unless it says the same already: the time of a run that made nothing is of no interest."""
        path, summary = self.folder / "summary.json", self.summary()
        with suppress(LookupError, OSError, TypeError, ValueError):
            written = json.loads(path.read_text(encoding="utf-8"))
            if all(written[part] == summary[part] for part in ("stages", "unfinished")):
                return
        write_json(path, summary)

    def summary(self) -> dict[str, Any]:
        """What `assay run --json` prints."""
        return {
            "run": self.folder.name,
            "dir": str(self.folder),
            "wall_s": round(time.monotonic() - self.began, 2),
            "peak_rss_mb": max(self.memory.lap(), self.memory.most),
            "stages": {
                step.id: {"kind": made.manifest["kind"], "artifact": made.id, "metrics": made.manifest["metrics"]}
                for step in self.recipe
                if (made := self.artifacts.get(step.id))
            },
            "unfinished": {
                step.id: {"kind": step.identity.kind, "artifact": step.identity.id, "config": dict(step.config)}
                for step in self.recipe
                if step.id not in self.artifacts
            },
            "graph": parents_of(self.recipe),
        }

    def _make(self, step: Step, folder: Path) -> Artifact:
        started, recipe = datetime.now(UTC), self.named.recipe
        device = environment.device(recipe.device) if step.node else "cpu"
        self.memory.lap()
        with ExitStack() as stack:
            mirrors = stack.enter_context(
                sinks.started(recipe.track, self.folder, run=f"{self.folder.name}/{step.id}", config=dict(step.config))
            )
            ctx = stack.enter_context(
                stage_context(
                    folder,
                    seed=step.identity.seed,
                    device=device,
                    mirrors=mirrors,
                    watch=watch(step, folder, recipe.doctor.act, self.request.say, self.folder),
                    stop=self.request.stop,
                )
            )
            metrics = self._work(step, ctx)
            if mirrors:
                show_plots(mirrors, step.identity.kind, folder)
        return self.store.publish(
            step.identity,
            {
                "stage": step.id,
                "inputs": dict(step.identity.inputs),
                "config": dict(step.config),
                "code": environment.code(),
                "data": self._data_hashes(step, folder),
                "files": dict(step.identity.data),
                "seed": step.identity.seed,
                "environment": environment.facts(device),
                "metrics": flat(metrics),
                "started": started.isoformat(timespec="seconds"),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "wall_s": round(ctx.seconds, 2),
                "monitor_s": round(ctx.watch.monitor.spent, 4),
                "peak_rss_mb": self.memory.lap(),
            },
        )

    def _work(self, step: Step, ctx: StageContext) -> Mapping[str, Any]:
        if step.node is None:
            self.request.say("data: preparing")
            return make_data(self.named.recipe.data, step.identity.seed, ctx.folder, self.plan)
        if self.data is None:
            self.data = Prepared.load(self.artifacts[DATA].folder)
        folders = {name: artifact.folder for name, artifact in self.artifacts.items()}
        inputs = stage_inputs(self.named, step, folders, self.data, ctx.device)
        stage, config = self.request.stage(step.node.kind), step.node.config
        return ctx.attempts(lambda: stage(config, inputs, ctx))

    def _data_hashes(self, step: Step, folder: Path) -> dict[str, str]:
        """Content hash of each purpose, as the data artifact reports them."""
        return report_of(folder if step.node is None else self.artifacts[DATA].folder).get("hashes", {})


def _clear(named: NamedRecipe, request: Request, plan: Sequence[Step], store: Store) -> None:
    """Take what `--from` names out of the way, and leftovers of killed runs that nothing can resume from."""
    store.clean()
    if request.start:
        again = descendants(named.graph, request.start)
        for step in plan:
            if step.id in again:
                store.set_aside(step.identity.id)


def flat(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers and words of a report, nested ones left out; a number that JSON cannot hold becomes null."""
    plain = {key: value for key, value in metrics.items() if isinstance(value, int | float | str | None)}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}


@contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM asks to stop where nothing is lost; the second stops at once."""
    import signal

    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        say(
            "stopping where nothing is lost: after this step, with a checkpoint, or after a stage that saves none; "
            "once more stops at once"
        )

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
