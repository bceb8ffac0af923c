"""Typed, frozen configuration: unknown keys are refused, every field says what it means and in which unit.

`validate` turns a document into a schema. It reports every fault at once, in plain words, with the place it was
written.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from assay.document import Document, KeyPath, dotted, show, write_value
from assay.errors import ConfigError

C = TypeVar("C", bound="Config")


@dataclass(frozen=True, init=False)
class StageRef:
    """Marks a field that names an earlier stage of the recipe: `Annotated[str | None, StageRef("sft", model=True)]`."""

    kinds: tuple[str, ...]
    """Kinds of stage that can fill it."""
    default: tuple[str, ...]
    """Those of them whose latest stage fills it when the recipe names none; all of them if left out."""
    required: bool
    """Whether it is a fault that nothing fills it."""
    model: bool
    """The recipe's own model fills it when no stage does."""
    auto: bool
    """False: it stays empty unless the recipe names something."""
    many: bool
    """It is a list, by default of every suitable stage."""

    def __init__(
        self,
        *kinds: str,
        default: tuple[str, ...] = (),
        required: bool = True,
        model: bool = False,
        auto: bool = True,
        many: bool = False,
    ) -> None:
        own = {"kinds": kinds, "default": default or kinds, "required": required}
        for name, value in {**own, "model": model, "auto": auto, "many": many}.items():
            object.__setattr__(self, name, value)


class Config(BaseModel):
    """Base of every schema in the project."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _over_the_default(cls, data: Any) -> Any:
        """A map given for a nested schema changes only the keys it names: `optim: {learning_rate: 1e-5}` keeps the
        stage's own default for the rest."""
        if not isinstance(data, dict):
            return data
        filled = dict(data)
        for name, info in cls.model_fields.items():
            default = info.get_default(call_default_factory=True) if isinstance(data.get(name), dict) else None
            if isinstance(default, Config):
                filled[name] = {**default.model_dump(exclude_defaults=True), **data[name]}
        return filled


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a configuration: where it was written, what is wrong, how to fix it."""

    place: str
    what: str
    hint: str = ""


def check(
    schema: type[C], document: Document, *, name: Callable[[KeyPath], str] = dotted
) -> tuple[C | None, list[Fault]]:
    """The document as a `schema`, or every fault. `name` says how a key path is called for the user."""
    try:
        return schema.model_validate(document.data), []
    except ValidationError as error:
        return None, list(_faults(schema, document, error.errors(), name))


def validate(schema: type[C], document: Document, *, name: Callable[[KeyPath], str] = dotted) -> C:
    """The document as a `schema`; ConfigError naming every fault."""
    value, faults = check(schema, document, name=name)
    if value is None:
        raise faults_error(faults)
    return value


def faults_error(faults: Sequence[Fault]) -> ConfigError:
    """One error that names every fault, in the order of the file."""
    if len(faults) == 1:
        return ConfigError(f"{faults[0].place}: {faults[0].what}", hint=faults[0].hint)
    ordered = sorted(faults, key=lambda fault: [int(digits) for digits in re.findall(r":(\d+)$", fault.place)])
    lines = [f"  {fault.place}: {fault.what}" + (f" ({fault.hint})" if fault.hint else "") for fault in ordered]
    what = "\n".join([f"{len(faults)} faults in the configuration", *lines])
    return ConfigError(what, hint="fix them all, then run again")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint: the closest known word (`lr` is close to optim.learning_rate), or all of them."""
    names = list(dict.fromkeys(known))
    last = {name.rpartition(".")[2]: name for name in reversed(names)}
    initials = {"".join(part[:1] for part in end.split("_")): name for end, name in last.items() if "_" in end}
    if word.lower() in initials:
        return f'did you mean "{initials[word.lower()]}"?'
    if close := difflib.get_close_matches(word.lower(), last, n=1, cutoff=0.6):
        return f'did you mean "{last[close[0]]}"?'
    return f"known: {', '.join(name for name in names if '.' not in name)}" if names else ""


def _faults(
    schema: type[BaseModel], document: Document, items: Sequence[Any], name: Callable[[KeyPath], str]
) -> Iterator[Fault]:
    """pydantic's errors in the user's terms; the members of a union that all refuse one value make one fault."""
    placed = [(_in_document(document.data, item["loc"]), item) for item in items]
    wanted: dict[KeyPath, list[str]] = {}
    for path, item in placed:
        if words := _WANTED.get(item["type"]):
            wanted.setdefault(path, []).append(words)
    for path, item in placed:
        if item["type"] not in _WANTED:
            what, hint = _plain_words(item, path, schema)
        elif path in wanted:
            words = dict.fromkeys(wanted.pop(path))
            what, hint = f"must be {' or '.join(words)}, not {show(item['input'])}", _usual(schema, item["loc"])
        else:
            continue
        label = name(path[:-1] if item["type"] == "extra_forbidden" else path)
        yield Fault(document.origin(path), f"{label}: {what}" if label else what, hint)


def _in_document(data: Any, location: KeyPath) -> KeyPath:
    """pydantic's location as a path of the document: names of union members are left out, a missing key is kept."""
    path: list[str | int] = []
    for depth, key in enumerate(location):
        inside: Any = dict(enumerate(data)) if isinstance(data, list) else data
        if isinstance(inside, dict) and key in inside:
            data = inside[key]
            path.append(key)
        elif depth == len(location) - 1 and isinstance(data, dict):
            path.append(key)
    return tuple(path)


def _plain_words(item: Any, path: KeyPath, schema: type[BaseModel]) -> tuple[str, str]:
    """What is wrong and how to fix it, for the kinds of fault that people make."""
    kind, value, context = item["type"], item.get("input"), item.get("ctx", {})
    if kind == "extra_forbidden":
        known = keys_at(schema, item["loc"][:-1])
        return f'unknown key "{item["loc"][-1]}"', did_you_mean(str(item["loc"][-1]), known)
    if kind == "missing":
        return "is missing", f"add `{path[-1]}: …`" if path else ""
    if kind == "union_tag_invalid":
        noun = next((str(key).removesuffix("s") for key in reversed(path) if isinstance(key, str)), "kind")
        return f'unknown {noun} "{context["tag"]}"', did_you_mean(context["tag"], _words(context["expected_tags"]))
    if kind == "literal_error":
        words = _words(context["expected"])
        return f"must be one of {', '.join(words)}, not {show(value)}", did_you_mean(str(value), words)
    if kind in ("too_short", "string_too_short"):
        return "must not be empty", ""
    if kind in ("value_error", "assertion_error"):
        return item["msg"].split(", ", 1)[-1], ""
    for bound, words in _BOUNDS.items():
        if bound in context:
            return f"must be {words} {context[bound]:g}, not {show(value)}", _usual(schema, item["loc"])
    return item["msg"][:1].lower() + item["msg"][1:], ""


def _words(quoted: str) -> list[str]:
    """pydantic's "'a', 'b' or 'c'" as words."""
    return re.findall(r"'([^']*)'", quoted)


_WANTED = {
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "a number"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a map of settings"),
    "string_type": "text",
}
_BOUNDS = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}


def keys_at(schema: type[BaseModel], location: Iterable[str | int]) -> list[str]:
    """The keys a schema knows at a location, then those one level deeper as `optim.learning_rate`."""
    models = _schemas_at(schema, location)
    keys = [(model, name) for model in models for name in model.model_fields if name != "kind"]
    deeper = [f"{name}.{key}" for model, name in keys for inner in _models(model, name) for key in inner.model_fields]
    return [name for _, name in keys] + deeper


def _schemas_at(schema: type[BaseModel], location: Iterable[str | int]) -> set[type[BaseModel]]:
    """Every schema that what stands at a location may have."""
    models = {schema}
    for key in location:
        if inside := {m for model in models if key in model.model_fields for m in _models(model, str(key))}:
            models = inside
        elif tagged := {model for model in models if _tag(model) == key}:
            models = tagged
    return models


def _usual(schema: type[BaseModel], location: KeyPath) -> str:
    """A hint: the default of what stands at a location, where it has one; a stage may have its own for an inner key."""
    *outside, around, key = ("", *location)
    for models, name in ((_schemas_at(schema, outside), around), (_schemas_at(schema, location[:-1]), key)):
        for info in [model.model_fields[str(name)] for model in models if name in model.model_fields]:
            default = info.get_default(call_default_factory=True)
            default = getattr(default, str(key), None) if name == around else default
            if isinstance(default, str | int | float):
                return f"the default is {write_value(default)}"
    return ""


def _models(model: type[BaseModel], field: str) -> Iterator[type[BaseModel]]:
    return models_in(model.model_fields[field].annotation)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every schema inside a type: `list[A | B] | None` → A, B."""
    if get_origin(annotation) in (Union, types.UnionType, Annotated, list, tuple, dict):
        for part in get_args(annotation):
            yield from models_in(part)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation


def _tag(model: type[BaseModel]) -> str | None:
    """The `kind` that tells a member of a tagged union apart."""
    kind = model.model_fields.get("kind")
    if kind is None or get_origin(kind.annotation) is not Literal:
        return None
    return get_args(kind.annotation)[0]
