"""An artifact exists whole, or it does not exist."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from assay.errors import ConfigError, StorageError, UsageError
from assay.pipeline import artifacts
from assay.pipeline.artifacts import (
    CHECKPOINT,
    Identity,
    Store,
    fingerprint,
    read_artifact,
    storage_errors,
    write_json,
    write_text,
)
from assay.pipeline.lock import is_free, locked

IDENTITY = Identity("sft", {"epochs": 2, "lr": 1e-5}, {"data": "data-0123456789ab"}, seed=3)
MANIFEST = {"inputs": {}, "config": {}, "metrics": {"loss": 1.5}}


def made(store: Store, identity: Identity = IDENTITY, text: str = "weights") -> Path:
    with store.writing(identity.id) as folder:
        (folder / "model.txt").write_text(text)
        (folder / CHECKPOINT).mkdir()
        (folder / CHECKPOINT / "step.json").write_text("{}")
        return store.publish(identity, MANIFEST).folder


def test_the_identity_is_a_function_of_what_determines_the_artifact_and_of_nothing_else():
    same = Identity("sft", {"lr": 1e-5, "epochs": 2}, {"data": "data-0123456789ab"}, seed=3)
    assert same.id == IDENTITY.id
    others = [
        replace(IDENTITY, kind="reward"),
        replace(IDENTITY, config={"epochs": 3, "lr": 1e-5}),
        replace(IDENTITY, inputs={"data": "data-0123456789ac"}),
        replace(IDENTITY, inputs={"base": "data-0123456789ab"}),
        replace(IDENTITY, data={"x.jsonl": "00"}),
        replace(IDENTITY, seed=4),
    ]
    assert len({IDENTITY.id, *(other.id for other in others)}) == 7


@pytest.mark.parametrize(
    "file",
    ["rng.py", "types.py", "pipeline/evaluators.py", "pipeline/inputs.py", "stages/ppo.py", "algorithms/kl.py"],
)
def test_every_file_that_decides_results_is_part_of_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
):
    copy = tmp_path / "assay"
    shutil.copytree(artifacts.PACKAGE, copy, ignore=shutil.ignore_patterns("*.pyc", "base"))
    monkeypatch.setattr(artifacts, "PACKAGE", copy)
    code_hash = artifacts.code_hash.__wrapped__
    before = code_hash()
    (copy / "cli" / "run.py").write_text("# shows results, decides none")
    assert code_hash() == before
    with (copy / file).open("a") as source:
        source.write("# changed\n")
    assert code_hash() != before


def test_other_code_or_another_version_makes_another_artifact(monkeypatch: pytest.MonkeyPatch):
    before = IDENTITY.id
    monkeypatch.setattr(artifacts, "__version__", "99.0")
    version = IDENTITY.id
    monkeypatch.setattr(artifacts, "code_hash", lambda: "other")
    assert len({before, version, IDENTITY.id}) == 3


def test_a_published_artifact_has_its_files_a_manifest_and_no_scratch(tmp_path: Path):
    store = Store(tmp_path)
    folder = made(store)
    assert folder.name == IDENTITY.id
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", "model.txt"]
    found = store.get(IDENTITY.id)
    assert found is not None
    assert found.manifest["metrics"] == {"loss": 1.5}
    assert not store.partial(IDENTITY.id).exists()
    assert [artifact.id for artifact in store.all()] == [IDENTITY.id]


def test_until_it_is_published_an_artifact_does_not_exist(tmp_path: Path):
    store = Store(tmp_path)
    with store.writing(IDENTITY.id) as folder:
        (folder / "model.txt").write_text("half")
        assert store.get(IDENTITY.id) is None
        assert store.all() == []


@pytest.mark.parametrize("checkpointed", [True, False])
def test_an_unfinished_artifact_stays_if_it_can_be_resumed_and_goes_if_not(tmp_path: Path, checkpointed: bool):
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.writing(IDENTITY.id) as folder:  # noqa: PT012
        (folder / "metrics.jsonl").write_text("{}\n")
        (folder / ".half.tmp").write_text("x")
        (folder / CHECKPOINT).mkdir()  # killed before the first checkpoint was whole: an empty folder, or half a file
        (folder / CHECKPOINT / ".state.tmp").write_text("x")
        if checkpointed:
            (folder / CHECKPOINT / "state").write_text("x")
        raise RuntimeError("killed")
    with store.writing(IDENTITY.id) as folder:
        assert (folder / "metrics.jsonl").exists() == checkpointed
        assert not (folder / ".half.tmp").exists()


def test_leftovers_that_nothing_can_resume_from_are_removed_and_others_are_not(tmp_path: Path):
    store = Store(tmp_path)
    for name in ("sft-dead", "sft-resumable", "sft-busy"):
        store.partial(name).mkdir(parents=True)
    (store.partial("sft-resumable") / CHECKPOINT).mkdir()
    (store.partial("sft-resumable") / CHECKPOINT / "state").write_text("x")
    with locked(tmp_path / "artifacts" / ".locks" / "sft-busy", "x"):
        store.clean()
    left = sorted(folder.name for folder in store.root.glob(".*.partial"))
    assert left == [".sft-busy.partial", ".sft-resumable.partial"]


def test_a_kill_between_the_rename_and_the_end_leaves_an_artifact_whose_scratch_goes_later(tmp_path: Path):
    store = Store(tmp_path)
    folder = made(store)
    (folder / CHECKPOINT).mkdir()
    store.clean()
    assert not (folder / CHECKPOINT).exists()
    assert store.get(IDENTITY.id) is not None


def test_an_artifact_set_aside_is_made_anew_and_then_gone(tmp_path: Path):
    store = Store(tmp_path)
    made(store, text="old")
    store.set_aside(IDENTITY.id)
    assert store.get(IDENTITY.id) is None
    folder = made(store, text="new")
    assert (folder / "model.txt").read_text() == "new"
    assert [entry.name for entry in store.root.iterdir() if entry.name != ".locks"] == [IDENTITY.id]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is damaged"),
        ("[]", "holds no object"),
        ('{"id": "sft-1"}', "has no kind, inputs, config, metrics"),
        (json.dumps({"kind": "sft", "id": "sft-000000000000", **MANIFEST}), "is the manifest of sft-000000000000"),
        (None, "is not a finished artifact"),
    ],
)
def test_a_damaged_manifest_is_one_error_with_its_cure(tmp_path: Path, content: str | None, words: str):
    folder = made(Store(tmp_path))
    (folder / "manifest.json").unlink()
    if content is not None:
        (folder / "manifest.json").write_text(content)
    with pytest.raises(StorageError, match=words) as error:
        read_artifact(folder)
    assert f"remove {folder}" in error.value.hint


def test_a_full_disk_is_a_storage_error_and_leaves_the_old_file(tmp_path: Path):
    """The kernel refuses, as it does on a full disk: a limit on file size needs no disk to fill."""
    write_json(tmp_path / "a.json", {"old": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(StorageError, match="no space left") as error, storage_errors(tmp_path, after="go on"):
            write_text(tmp_path / "a.json", "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.hint == "free some space; go on"
    assert error.value.exit_code == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), StorageError),
        (RuntimeError("I/O error: No space left on device (os error 28)"), StorageError),  # safetensors says it so
        (OSError(errno.EROFS, "Read-only file system"), UsageError),
        (OSError(errno.EACCES, "Permission denied"), UsageError),
        (OSError(errno.ENOENT, "No such file"), FileNotFoundError),
        (ValueError("a bug"), ValueError),
        (ConfigError("the user's own"), ConfigError),
    ],
)
def test_only_storage_trouble_becomes_a_storage_error(tmp_path: Path, raised: Exception, kind: type[Exception]):
    with pytest.raises(kind), storage_errors(tmp_path, after="go on"):
        raise raised


def test_dev_full_is_told_as_a_full_disk(tmp_path: Path):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with pytest.raises(StorageError, match="no space left"), storage_errors(tmp_path, after="x"):
        Path("/dev/full").write_text("x")


def test_a_second_writer_gets_one_error_that_names_the_first(tmp_path: Path):
    path = tmp_path / "run.lock"
    hold = "import sys; from assay.pipeline.lock import locked; from pathlib import Path\n"
    hold += "with locked(Path(sys.argv[1]), 'x'): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert not is_free(path)
        with pytest.raises(StorageError, match=rf"the run x is being written .*process {other.pid}") as error:
            locked(path, "the run x").__enter__()
        assert "runs_dir=" in error.value.hint
        other.kill()  # however the owner dies, the lock is free
        other.wait()
    with locked(path, "the run x"):
        pass
    assert is_free(path)


def test_a_fingerprint_depends_on_content_and_names_only(tmp_path: Path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        (folder / "deep").mkdir(parents=True)
        (folder / "x.txt").write_text("1")
        (folder / "deep" / "y.txt").write_text("2")
    (second / ".cache").write_text("ignored")
    same = fingerprint(first)
    assert fingerprint(second) == same
    (second / "x.txt").write_text("3")
    changed = fingerprint(second)
    shutil.move(first / "x.txt", first / "z.txt")
    assert len({same, changed, fingerprint(first), fingerprint(first / "z.txt")}) == 4


def test_a_request_that_proves_wrong_leaves_nothing_behind(tmp_path: Path):
    store, run = Store(tmp_path / "runs"), tmp_path / "runs" / "mine-0"
    around = (store.root / ".locks", store.root, tmp_path / "runs")
    with (
        pytest.raises(UsageError),
        artifacts.new_folder(run, around),
        locked(run / "run.lock", "x"),
        store.writing(IDENTITY.id),
    ):
        raise UsageError("no such file")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays_whatever_happens(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("{}")
    with pytest.raises(UsageError), artifacts.new_folder(tmp_path / "run", (tmp_path,)):
        raise UsageError("wrong")
    assert (tmp_path / "run" / "summary.json").exists()
