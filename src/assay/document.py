"""YAML 1.2 with line numbers: `1e-5` is a number, `no` is a word, a key given twice is an error.

PyYAML speaks YAML 1.1, where `1e-5` is a string and `010` is eight; both have ruined training runs. Every value keeps
the place it came from (a file's line, an environment variable, the command line), so that a fault can name it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from assay.errors import ConfigError

KeyPath = tuple[str | int, ...]
PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
ODD_BREAKS = frozenset("\x85\u2028\u2029")
MAX_DEPTH = 40
MAX_NODES = 20_000


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema (yaml.org/spec/1.2.2, 10.3.2)."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own protocol)


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads back: the text "1e-5" is quoted, because it would be a number without."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own protocol)

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


_INT = r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    for _side in (Loader, Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _text(dumper: Dumper, text: str) -> yaml.Node:
    """Text with YAML 1.1's odd line breaks goes into double quotes: PyYAML reads them back as blanks otherwise."""
    style = '"' if ODD_BREAKS.intersection(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, _text)


def _integer(loader: Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _number(loader: Loader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)).lower().replace(".inf", "inf").replace(".nan", "nan"))


Loader.add_constructor("tag:yaml.org,2002:int", _integer)
Loader.add_constructor("tag:yaml.org,2002:float", _number)


@dataclass(slots=True)
class Document:
    """Plain data with the origin of every key path, e.g. ("stages", 2, "ppo") → "hh.yaml:14"."""

    data: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)
    source: str = ""

    def origin(self, path: KeyPath) -> str:
        """Where the value at `path`, or the nearest thing around it, was written."""
        for end in range(len(path), -1, -1):
            if found := self.origins.get(path[:end]):
                return found
        return self.source

    def set(self, path: KeyPath, value: Any, origin: str) -> None:
        """Put `value` at `path`, making the maps on the way; ConfigError where a value is in the way."""
        place: Any = self.data
        for depth, key in enumerate(path):
            if not (isinstance(place, dict) or (isinstance(place, list) and isinstance(key, int))):
                where = dotted(path[:depth])
                raise ConfigError(
                    f"{origin}: {where} is {show(place)}, which has no key {key!r}",
                    hint=f"set {where} as a whole: '{where}=…'",
                )
            container: Any = place
            if depth == len(path) - 1:
                container[key] = value
            elif isinstance(place, dict) and place.get(key) is None:
                container[key] = {}
            place = container[key]
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]
        self.origins[path] = origin


def read_yaml(text: str, source: str) -> Document:
    """A document whose top level is a map. All faults are ConfigErrors that name `source` and the line."""
    loader = None
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        builder = _Builder(loader, source)
        data = {} if node is None else builder.build(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(
            f"{place}: not valid YAML: {error.problem or error.context}",
            hint="check the indentation, brackets and quotes around that line",
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}", hint="save the file as plain UTF-8 text") from error
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(data, dict):
        raise ConfigError(
            f"{source}: must be a map of keys and values, not {show(data)}", hint="write `key: value` lines"
        )
    return Document(data, builder.origins, source)


def read_file(path: Path) -> Document:
    """A document from a file; ConfigError when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})", hint="save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="check the path and its permissions") from error
    return read_yaml(text, str(path))


def write_yaml(value: Any) -> str:
    """Plain data as YAML, in the order it has."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def write_value(value: Any) -> str:
    """A value for `key=value` or a line of YAML, which YAML 1.1 and 1.2 read alike: 0.00001 is 1.0e-05."""
    return yaml.dump([value], Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=math.inf).strip()[1:-1]


def parse_value(text: str) -> Any:
    """The value of `key=value`, read as YAML: `3` is a number, `[a, b]` a list, anything odd is plain text."""
    try:
        return read_yaml(f"value: {text}", "").data["value"] if "\n" not in text else text
    except ConfigError:
        if text[:1] in "[{":
            raise ConfigError(f"{text}: brackets do not close", hint="quote the whole: 'key=[a, b]'") from None
        return text


def split_override(text: str) -> tuple[tuple[str, ...], Any]:
    """`ppo.kl_target=3` → (("ppo", "kl_target"), 3)."""
    key, separator, value = text.partition("=")
    parts = tuple(key.strip().split("."))
    if not separator or not all(parts):
        raise ConfigError(f"{text!r} is not key=value", hint="write overrides like ppo.kl_target=3 or seed=1")
    return parts, parse_value(value)


def dotted(path: Iterable[str | int]) -> str:
    """("stages", 2, "ppo") → stages[2].ppo"""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


def show(value: Any) -> str:
    """A value as a reader would write it, cut to a line."""
    if isinstance(value, dict):
        return f"a map ({', '.join(map(str, list(value)[:4]))})" if value else "an empty map"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "…"


class _Builder:
    """Turns YAML nodes into plain data and notes the line of every key."""

    def __init__(self, loader: Loader, source: str) -> None:
        self.loader, self.source, self.nodes = loader, source, 0
        self.origins: dict[KeyPath, str] = {}

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.nodes += 1
        if len(path) > MAX_DEPTH or self.nodes > MAX_NODES:
            raise ConfigError(f"{self._place(node)}: too deeply nested", hint="do aliases refer back to themselves?")
        if not isinstance(node, yaml.ScalarNode) and node.tag not in PLAIN_TAGS:
            raise ConfigError(f"{self._place(node)}: the tag {node.tag} is not allowed", hint="write plain YAML")
        self.origins.setdefault(path, self._place(node))
        if isinstance(node, yaml.MappingNode):
            return self._map(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        return self.loader.construct_object(node)

    def _map(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in sorted(node.value, key=lambda pair: pair[0].value != "<<"):
            if key_node.value == "<<" and isinstance(value_node, yaml.MappingNode):  # `<<: *other`
                merged = self._map(value_node, path)
                continue
            key, place = self.loader.construct_object(key_node, deep=True), self._place(key_node)
            if not isinstance(key, str):
                raise ConfigError(f"{place}: a key must be a word, not {show(key)}", hint="quote it if it is meant")
            if key in result:
                first = self.origins[(*path, key)]
                raise ConfigError(
                    f'{place}: "{key}" is given twice (first at {first})',
                    hint="remove one; two stages of one kind are two items of the list",
                )
            self.origins[(*path, key)] = place
            result[key] = self.build(value_node, (*path, key))
        return {**merged, **result}

    def _place(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}"
