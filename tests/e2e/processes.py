"""`assay` commands as processes of their own, started quickly: a server loads the libraries once and forks for each."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path

PRELOADED = [
    "assay.cli.main",
    "assay.doctor.examination",
    "assay.pipeline.evaluators",
    "assay.pipeline.plan",
    "assay.stages.evaluate",
    "assay.stages.ppo",
    "assay.stages.pretrain",
    "assay.stages.reward",
    "assay.tracking.report",
]
PATIENCE = 240.0
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(PRELOADED)


class Command:
    """One running `assay` command. `file_limit` is the size at which the kernel refuses to let a file grow."""

    def __init__(self, folder: Path, *words: str, file_limit: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.out")))
        self._out, self._err = folder / f"{number}.out", folder / f"{number}.err"
        self._out.touch()
        self._err.touch()
        self.process = FORKSERVER.Process(target=_run, args=(words, str(self._out), str(self._err), file_limit))
        self.process.start()

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait(self) -> int:
        """The exit code."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, f"the command did not end:\n{self.err}"
        return self.process.exitcode

    def wait_for(self, beginning: str) -> None:
        """Until a line of stderr begins so."""
        deadline = time.monotonic() + PATIENCE
        while not any(line.startswith(beginning) for line in self.err.splitlines()):
            assert self.process.is_alive(), f"it ended before {beginning!r}:\n{self.err}"
            assert time.monotonic() < deadline, self.err
            time.sleep(0.01)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.join()


def _run(words: tuple[str, ...], out: str, err: str, file_limit: int | None) -> None:
    import torch

    from assay.cli.main import app

    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, -1))
    torch.set_num_threads(1)
    app(list(words))
