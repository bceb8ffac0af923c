"""Hugging Face hub data sets → rows, each with its place."""

from __future__ import annotations

import contextlib
import re
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from assay.data.files import Located, kind_of
from assay.errors import DataError

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_TIMEOUT = 10.0  # seconds


def hub_rows(hub_id: str, split: str, *, streaming: bool) -> Iterator[Located]:
    """The rows of a Hugging Face hub data set; `owner/name/folder` reads one folder of it.

    DataError, not a traceback, when it does not exist or there is no network.
    """
    import datasets

    owner_name, folder = _owner_name(hub_id), "/".join(hub_id.split("/")[2:])
    if not (_hub_resolves() or _cached(owner_name)):  # at once: the library would try for half a minute
        raise _not_on_hub(hub_id, "there is no network")
    try:
        rows = datasets.load_dataset(owner_name, data_dir=folder or None, split=split, streaming=streaming)
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_on_hub(hub_id, (str(error).strip() or type(error).__name__).splitlines()[0]) from error
    for number, row in enumerate(rows, start=1):
        yield Located(dict(row), hub_id, number)


def hub_content(hub_id: str) -> str:
    """What stands for the content of a hub data set: its id, with the commit where that can be known.

    The commit is the hub's latest; without a network, the one in the local cache.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]  (httpx's, or its successor's)

    owner_name = _owner_name(hub_id)
    revision = None
    if _hub_resolves():
        with contextlib.suppress(HTTPError, OSError):  # what is wrong is said when the rows are read
            revision = HfApi().dataset_info(owner_name, timeout=HUB_TIMEOUT).sha
    revision = revision or _cached_revision(owner_name)
    return f"hub:{hub_id}@{revision}" if revision else f"hub:{hub_id}"


def is_hub_id(path: str) -> bool:
    """Whether a path that is not here could be a hub id: `name`, `owner/name` or `owner/name/folder`."""
    return not Path(path).exists() and not kind_of(Path(path)) and bool(re.fullmatch(r"\w[\w.-]*(/[\w.-]+){0,3}", path))


def _hub_resolves() -> bool:
    """Whether the hub's name can be looked up; a proxy would do that for us."""
    from huggingface_hub import constants

    try:
        return bool(urllib.request.getproxies()) or bool(socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443))
    except OSError:
        return False


def _owner_name(hub_id: str) -> str:
    return "/".join(hub_id.split("/")[:2])


def _cached(hub_id: str) -> list[Path]:
    """Copies in the local cache; their folder is `owner___name`, the name in snake case."""
    from datasets.config import HF_DATASETS_CACHE

    def squashed(name: str) -> str:
        return re.sub(r"[_/]", "", name).lower()

    return [folder for folder in Path(HF_DATASETS_CACHE).glob("*") if squashed(folder.name) == squashed(hub_id)]


def _cached_revision(hub_id: str) -> str | None:
    """Commit of the newest cached copy, which is the one that `datasets` reads offline: CONFIG/VERSION/COMMIT."""
    copies = [copy for folder in _cached(hub_id) for copy in folder.glob("*/*/*") if COMMIT.fullmatch(copy.name)]
    newest = max(copies, key=lambda copy: copy.stat().st_mtime, default=None)
    return newest.name if newest else None


def _not_on_hub(hub_id: str, reason: str) -> DataError:
    return DataError(
        f"{hub_id}: no such file or folder here, and the hub did not give it either: {reason}",
        hint="check the spelling and the network, or download the data and give its local path",
    )
