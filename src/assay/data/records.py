"""Typed items ↔ JSON rows. The rows are TRL's conversational forms, so other tools read them too."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from assay.errors import StorageError
from assay.types import Demonstration, JudgedSteps, Message, Preference, Prompt, Ranking, Verdict

Item = Prompt | Demonstration | Preference | Ranking | Verdict | JudgedSteps | str
Record = dict[str, Any]
ENCODER = json.JSONEncoder(ensure_ascii=False)


def to_record(item: Item) -> Record:
    """One item as a JSON-able row; `from_record` gives the item back exactly."""
    match item:
        case str():
            return {"text": item}
        case Prompt():
            return _prompt_record(item)
        case Demonstration(prompt, response):
            return _prompt_record(prompt) | {"completion": _reply(response)}
        case Preference(prompt, chosen, rejected, margin, objective):
            record = _prompt_record(prompt) | {"chosen": _reply(chosen), "rejected": _reply(rejected)}
            record |= {} if margin is None else {"margin": margin}
            return record | _objective(objective)
        case Ranking(prompt, responses, objective):
            return _prompt_record(prompt) | {"responses": list(responses)} | _objective(objective)
        case JudgedSteps(prompt, steps, good):
            return _prompt_record(prompt) | {"completions": list(steps), "labels": list(good)}
        case Verdict(prompt, response, good):
            return _prompt_record(prompt) | {"completion": _reply(response), "label": good}


def from_record(row: Mapping[str, Any]) -> Item:
    """The item that `to_record` made this row of."""
    if "text" in row:
        return row["text"]
    messages = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
    prompt = Prompt(messages, row.get("source", ""), row.get("kind", ""))
    if "chosen" in row:
        chosen, rejected = _said(row["chosen"]), _said(row["rejected"])
        return Preference(prompt, chosen, rejected, row.get("margin"), row.get("objective", ""))
    if "responses" in row:
        return Ranking(prompt, tuple(row["responses"]), row.get("objective", ""))
    if "completions" in row:
        return JudgedSteps(prompt, tuple(row["completions"]), tuple(row["labels"]))
    if "label" in row:
        return Verdict(prompt, _said(row["completion"]), row["label"])
    if "completion" in row:
        return Demonstration(prompt, _said(row["completion"]))
    return prompt


def line_of(row: Mapping[str, Any]) -> bytes:
    """One row as a line of JSON."""
    return (ENCODER.encode(row) + "\n").encode()


def to_line(item: Item) -> bytes:
    """One item as a line of JSON."""
    return line_of(to_record(item))


def from_line(line: bytes) -> Any:
    """The item that `to_line` made this line of."""
    return from_record(json.loads(line))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it; StorageError when the disk refuses."""
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except OSError as error:
        what = f"{path}: cannot be written: {error.strerror or error}"
        raise StorageError(what, hint="free some space or choose another path") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _prompt_record(prompt: Prompt) -> Record:
    record: Record = {"prompt": [{"role": turn.role, "content": turn.content} for turn in prompt.messages]}
    if prompt.source:
        record["source"] = prompt.source
    if prompt.kind:
        record["kind"] = prompt.kind
    return record


def _objective(name: str) -> Record:
    return {"objective": name} if name else {}


def _reply(text: str) -> list[Record]:
    return [{"role": "assistant", "content": text}]


def _said(turns: list[Record]) -> str:
    return turns[0]["content"]
