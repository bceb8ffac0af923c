"""Artifacts: folders named by the hash of what determines them. One exists whole, or it does not exist.

runs_dir/artifacts/<kind>-<id12>/            finished: manifest.json was written last, then the folder was renamed
runs_dir/artifacts/.<kind>-<id12>.partial/   unfinished: found again by name, so a killed stage resumes from it
runs_dir/artifacts/.locks/                   one file for each, held while somebody writes
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from assay import __version__
from assay.errors import AssayError, StorageError, UsageError
from assay.pipeline.lock import is_free, locked

PACKAGE = Path(__file__).parents[1]
MANIFEST = "manifest.json"
CHECKPOINT = "checkpoint"
FINDINGS = "findings.jsonl"
LOGS = ("metrics.jsonl", "samples.jsonl", FINDINGS)
CODE = (
    *("algorithms", "data", "worlds", "models", "rollout", "rewards", "evaluation", "stages", "assets"),
    *("rng.py", "statistics.py", "types.py", "pipeline/evaluators.py", "pipeline/inputs.py"),
)
"""Folders and files of the package that decide results; all others only schedule, store and show them."""
OS_ERROR = re.compile(r"\(os error (\d+)\)")
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class Identity:
    """What determines an artifact. Two runs that agree on all of it share the artifact."""

    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Role → id of the artifact, or content hash of a model from outside."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Name → content hash of the files it is made from."""
    seed: int = 0

    @property
    def id(self) -> str:
        """<kind>-<12 hex digits>, which is also the folder's name."""
        facts = [self.kind, self.config, self.inputs, self.data, self.seed, __version__, code_hash()]
        text = json.dumps(facts, sort_keys=True, ensure_ascii=False, default=dict)
        return f"{self.kind}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished artifact."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def id(self) -> str:
        return self.manifest["id"]


class Store:
    """All artifacts under one runs_dir."""

    def __init__(self, runs_dir: Path) -> None:
        self.root = runs_dir / "artifacts"

    def get(self, artifact_id: str) -> Artifact | None:
        """The finished artifact, or None. StorageError when its manifest is damaged."""
        folder = self.root / artifact_id
        return read_artifact(folder) if folder.is_dir() else None

    def partial(self, artifact_id: str) -> Path:
        """Where the unfinished artifact of this id is written."""
        return self.root / f".{artifact_id}.partial"

    def all(self) -> list[Artifact]:
        """Every finished artifact, by name. Damaged ones raise."""
        return [read_artifact(folder) for folder in sorted(self.root.glob("[!.]*")) if folder.is_dir()]

    def clean(self) -> None:
        """Remove what killed runs left that nothing can resume from: no checkpoint, and nobody is writing it."""
        for folder in self.root.glob(".*.partial"):
            name = folder.name.removeprefix(".").removesuffix(".partial")
            if not resumable(folder) and is_free(self._lock(name)):
                shutil.rmtree(folder, ignore_errors=True)
        for scratch in self.root.glob(f"[!.]*/{CHECKPOINT}"):  # killed between the rename and the end of `publish`
            if is_free(self._lock(scratch.parent.name)):
                shutil.rmtree(scratch, ignore_errors=True)

    def set_aside(self, artifact_id: str) -> None:
        """Take an artifact out of the way so that it is made anew; it goes for good once the new one exists."""
        shutil.rmtree(self.partial(artifact_id), ignore_errors=True)
        if (self.root / artifact_id).is_dir():
            shutil.rmtree(self._replaced(artifact_id), ignore_errors=True)
            (self.root / artifact_id).rename(self._replaced(artifact_id))

    @contextmanager
    def writing(self, artifact_id: str) -> Iterator[Path]:
        """Hold the artifact's lock and yield its working folder.

        What a killed run left there stays if it can be resumed from (it has a checkpoint) and goes if not.
        """
        with locked(self._lock(artifact_id), f"the artifact {artifact_id}"):
            folder = self.partial(artifact_id)
            if not resumable(folder):
                shutil.rmtree(folder, ignore_errors=True)
            for leftover in folder.glob("**/*.tmp"):
                leftover.unlink() if leftover.is_file() else shutil.rmtree(leftover)
            folder.mkdir(parents=True, exist_ok=True)
            try:
                yield folder
            except UsageError:  # a wrong request leaves nothing behind
                if not resumable(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                    self._lock(artifact_id).unlink(missing_ok=True)
                raise

    def publish(self, identity: Identity, manifest: Mapping[str, Any]) -> Artifact:
        """Turn the working folder into the artifact: everything on the disk, manifest last, then one rename.

        The checkpoint goes only after that, so that a kill at any moment costs no more than the steps since it.
        """
        folder, final = self.partial(identity.id), self.root / identity.id
        for file in [file for file in folder.rglob("*") if file.is_file() and file.parent.name != CHECKPOINT]:
            if file.name in LOGS and not file.stat().st_size:
                file.unlink()
            else:
                _sync(file)
        write_json(folder / MANIFEST, {"kind": identity.kind, "id": identity.id, **manifest})
        folder.rename(final)
        _sync(self.root)
        shutil.rmtree(final / CHECKPOINT, ignore_errors=True)
        shutil.rmtree(self._replaced(identity.id), ignore_errors=True)
        return read_artifact(final)

    def _lock(self, artifact_id: str) -> Path:
        return self.root / ".locks" / artifact_id

    def _replaced(self, artifact_id: str) -> Path:
        return self.root / f".{artifact_id}.replaced"


def resumable(folder: Path) -> bool:
    """Whether an unfinished artifact holds a whole checkpoint."""
    return any(not file.name.startswith(".") for file in (folder / CHECKPOINT).glob("*"))


def read_artifact(folder: Path) -> Artifact:
    """The artifact in a folder. StorageError when its manifest is missing or damaged."""
    path = folder / MANIFEST
    hint = f"remove {folder} and run again: the stage is made anew"
    if not path.is_file():
        raise StorageError(f"{folder} has no {MANIFEST}, so it is not a finished artifact", hint=hint)
    manifest = read_json(path, hint=hint)
    if missing := [key for key in ("kind", "id", "inputs", "config", "metrics") if key not in manifest]:
        raise StorageError(f"{path} is damaged: it has no {', '.join(missing)}", hint=hint)
    if manifest["id"] != folder.name:
        raise StorageError(f"{path} is damaged: it is the manifest of {manifest['id']}", hint=hint)
    return Artifact(folder, manifest)


def read_json(path: Path, *, hint: str) -> dict[str, Any]:
    """A JSON object from a file of ours; StorageError when it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} is damaged: {error}", hint=hint) from error
    if not isinstance(value, dict):
        raise StorageError(f"{path} is damaged: it holds no object", hint=hint)
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write under a temporary name, flush to the disk, rename: a reader sees the old file or the new one."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """`write_json` for plain text."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(folder: Path, inside: Sequence[Path] = ()) -> Iterator[None]:
    """Make a folder; if it was not there before and the request proves wrong, it goes again.

    `inside` are folders around it, innermost first, that go too if they are empty then.
    """
    was_there = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(
            f"cannot make {folder}: a file is in the way", hint="choose another folder: runs_dir=…"
        ) from error
    try:
        yield
    except UsageError:
        if not was_there:
            shutil.rmtree(folder)
        for empty in inside:
            with suppress(OSError):
                empty.rmdir()
        raise


@contextmanager
def storage_errors(folder: Path, *, after: str) -> Iterator[None]:
    """Turn a full or forbidden disk into a StorageError about `folder`; `after` says what to do once it is fixed."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(error, AssayError):
            raise
        if found := OS_ERROR.search(str(error)):  # safetensors reports it in words only
            number = int(found[1])
        if number in NO_SPACE:
            raise StorageError(f"no space left to write {folder}: {error}", hint=f"free some space; {after}") from error
        if number in {errno.EACCES, errno.EROFS, errno.EPERM}:
            raise UsageError(f"cannot write {folder}: {error}", hint="choose another folder: runs_dir=…") from error
        raise


def fingerprint(path: Path) -> str:
    """16 hex digits of the content of a file, or of every file of a folder with its relative name."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        status = file.stat()
        content = _file_hash(file, status.st_size, status.st_mtime_ns)
        digest.update(f"{file.relative_to(path) if path.is_dir() else ''}\x1f{content}\x1e".encode())
    return digest.hexdigest()


@cache
def code_hash() -> str:
    """8 hex digits of the source that computes results: an artifact of other code is another artifact."""
    digest = hashlib.blake2b(digest_size=4)
    for path in (PACKAGE / name for name in CODE):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(PACKAGE)}\x1f".encode() + file.read_bytes())
    return digest.hexdigest()


@cache
def _file_hash(file: Path, size: int, modified: int) -> str:
    """Content hash, computed once for each (size, time of change)."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in file.relative_to(root).parts)


def _sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
