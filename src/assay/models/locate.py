"""Where a model is: a local folder, the hub, the embedded base, or a folder inside an installed Python package."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import importlib.util
import json
import re
from pathlib import Path

from assay.errors import ModelError, UsageError

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def locate(path: str | Path, *, fetch: bool = True) -> Path:
    """The folder that holds a model's config.json and safetensors; without `fetch` the hub is not asked for it.

    Raises `UsageError` when nothing is there and `ModelError` when what is there is not a usable model.
    """
    name = str(path)
    if name == "embedded":
        folder = Path(str(importlib.resources.files("assay"))) / "assets" / "base"
        return _checked(folder, hint="this installation lacks its embedded model: reinstall assay")
    if name.startswith("package:"):
        return _in_package(name.removeprefix("package:"))
    folder = Path(name).expanduser()
    if folder.exists() or not HUB_ID.fullmatch(name):
        return _local(folder)
    return _from_hub(name, fetch=fetch)


def weights_hash(folder: Path) -> str:
    """16 hex digits of a model folder's weights; the same weights in another place have the same hash."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(folder.glob("*.safetensors")):
        stat = file.stat()
        digest.update(_file_hash(file, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()


@functools.lru_cache(maxsize=32)
def _file_hash(file: Path, size: int, modified: int) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").digest()


def _local(folder: Path) -> Path:
    if not folder.is_dir():
        raise UsageError(
            f"no model at {folder}: there is no such folder",
            hint="give a folder with config.json and *.safetensors, a hub id like org/name, package:NAME, or embedded",
        )
    return _checked(folder, hint="save it with model.save_pretrained(folder) and tokenizer.save_pretrained(folder)")


def _checked(folder: Path, *, hint: str) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is not a model: it has no config.json", hint=hint)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} has no *.safetensors weights; other formats can run code when loaded and are not read",
            hint="convert it once with transformers: model.save_pretrained(folder)",
        )
    return folder


def _in_package(package: str) -> Path:
    """Found by its files: the package is never imported."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            f"no Python package {package!r} is installed",
            hint=f"pip install {package.replace('_', '-')}, or give the model another way",
        )
    for root in map(Path, spec.submodule_search_locations):
        for config in sorted(root.rglob("config.json"), key=lambda file: len(file.parts)):
            if "model_type" in json.loads(config.read_text()) and any(config.parent.glob("*.safetensors")):
                return config.parent
    raise ModelError(
        f"package {package!r} holds no model: no folder of it has config.json and *.safetensors",
        hint="name a package that ships a transformers model",
    )


def _from_hub(name: str, *, fetch: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = Path(
            snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=["*/*"], local_files_only=not fetch)
        )
    except GatedRepoError as error:
        raise ModelError(
            f"the hub asks for permission to use {name}", hint=f"accept its terms on hf.co/{name}, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"no model {name!r}: neither a local folder nor on the Hugging Face hub",
            hint="check the spelling; for a private one, `hf auth login`",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"no model {name!r}: there is no such folder here, and the Hugging Face hub cannot be reached",
            hint="check the path; for a hub model, connect to the network once, or copy it here and give its folder",
        ) from error
    return _checked(folder, hint=f"hf.co/{name} holds no transformers model")
