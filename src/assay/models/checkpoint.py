"""Training state on disk: one safetensors file, replaced in one step, with a digest that shows damage.

Tensors and a JSON state only; nothing that is read back can run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from assay.errors import NotFiniteError, StorageError

FILE = "checkpoint.safetensors"


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a JSON state; a crash or a full disk leaves the previous checkpoint as it was.

    Raises `StorageError` when the file cannot be written, and `NotFiniteError`, before it is touched, when a tensor is
    not finite: what can be gone on from is not given up for what cannot.
    """
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    if odd := [name for name, tensor in own.items() if not torch.isfinite(tensor).all()]:
        raise NotFiniteError(
            f"{len(odd)} of {len(own)} tensors to save are not finite, first {odd[0]}",
            hint="lower optim.learning_rate",
        )
    text = json.dumps(state)
    target, draft = folder / FILE, folder / f".{FILE}.tmp"
    with writing(target):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(own, draft, metadata={"state": text, "digest": _digest(own, text)})
            _flush(draft)
            os.replace(draft, target)
            _flush(folder)
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors (on the CPU) and the state, or None where nothing was saved yet.

    Raises `StorageError` when the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    hint = f"delete {path} to start this stage again"
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be read: {error}", hint=hint) from error
    text = metadata.get("state", "")
    if metadata.get("digest") != _digest(tensors, text):
        raise StorageError(f"{path} is damaged: its content does not match its digest", hint=hint)
    return tensors, json.loads(text)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what the disk says while `target` is written into a `StorageError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        hint = "free some space, or set another runs_dir"
        raise StorageError(f"cannot write {target}: {error}", hint=hint) from error


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Make sure that a file, or a folder's list of names, is on the disk and not only in a cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
