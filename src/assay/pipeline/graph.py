"""Which stage reads which: references by id, checked and resolved before anything is loaded.

The fields of a stage that are marked with `StageRef` are its references; what they are called is the role.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from assay.config import Config, StageRef, did_you_mean
from assay.stages.config import AnyStage

ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
RESERVED = ("data", "model", "stages", "seed", "runs_dir", "device", "track")


@dataclass(frozen=True, slots=True)
class Source:
    """What fills a role: an earlier stage by id, or a model from outside the run by path."""

    name: str
    outside: bool = False


def spread(stages: Sequence[AnyStage]) -> list[tuple[int, AnyStage]]:
    """The stages as they run, each with its place in the recipe: one with `seeds: 3` runs as ID-1, ID-2, ID-3."""
    spread_out: list[tuple[int, AnyStage]] = []
    for place, stage in enumerate(stages):
        if stage.seeds == 1:
            spread_out.append((place, stage))
        for number in range(stage.seeds if stage.seeds > 1 else 0):
            seed = None if stage.seed is None else stage.seed + number
            own = {"id": f"{stage.id or stage.kind}-{number + 1}", "seed": seed, "seeds": 1}
            spread_out.append((place, stage.model_copy(update=own)))
    return spread_out


@dataclass(frozen=True, slots=True)
class Node:
    """A stage with its inputs resolved: role → what fills it, several for a role that takes many."""

    id: str
    config: AnyStage
    inputs: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.config.kind

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of the stages it reads, each once."""
        return tuple(dict.fromkeys(s.name for sources in self.inputs.values() for s in sources if not s.outside))


Graph = tuple[Node, ...]
"""Stages in the order they run; parents come first because references only point back."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A reference that does not resolve: index of the stage, its field, what is wrong, the fix."""

    stage: int
    field: str
    what: str
    hint: str = ""


def references(config: Config | type[Config]) -> dict[str, StageRef]:
    """The fields of a stage's settings that name other stages."""
    fields = (config if isinstance(config, type) else type(config)).model_fields
    return {name: mark for name, info in fields.items() for mark in info.metadata if isinstance(mark, StageRef)}


def link(model: str, recipe: Sequence[AnyStage]) -> tuple[Graph, list[Fault]]:
    """Nodes with resolved inputs, and every fault found. `model` is the recipe's own model."""
    stages = spread(recipe)
    earlier: dict[str, str] = {}
    later = [stage.id or stage.kind for _, stage in stages]
    nodes: list[Node] = []
    faults: list[Fault] = []
    for index, stage in stages:
        name = later.pop(0)
        faults += _name_faults(index, name, earlier)
        inputs: dict[str, tuple[Source, ...]] = {}
        for role, rule in references(stage).items():
            named = getattr(stage, role)
            wanted = (named,) if isinstance(named, str) else tuple(named or ())
            sources = tuple(Source(n, n not in earlier) for n in wanted) or _default(rule, earlier, model)
            problems = [_reference_fault(n, rule.kinds, earlier, later) for n in wanted]
            if not sources and rule.required:
                problems = [
                    (f"needs a {' or '.join(rule.kinds)} stage before it", f"add `- {rule.kinds[0]}: {{}}` above")
                ]
            faults += [Fault(index, role, *problem) for problem in problems if problem]
            inputs |= {role: sources} if sources else {}
        faults += _reading_faults(index, stage, inputs, nodes)
        nodes.append(Node(name, stage, inputs))
        earlier[name] = stage.kind if stage.leaves_model else f"{stage.kind} without a model"
    return tuple(nodes), faults


def ancestors(graph: Graph, stage: str) -> set[str]:
    """`stage` and every stage it needs."""
    reached = {stage}
    for node in reversed(graph):
        if node.id in reached:
            reached.update(node.parents)
    return reached


def descendants(graph: Graph, stage: str) -> set[str]:
    """`stage` and every stage that reads it, directly or not; all stages for "data"."""
    reached = {stage}
    for node in graph:
        if stage == "data" or reached.intersection(node.parents):
            reached.add(node.id)
    return reached


def is_model(name: str) -> bool:
    """Whether a reference is meant as a model: a path, OWNER/NAME on the hub, package:NAME or embedded."""
    return "/" in name or ":" in name or name == "embedded" or Path(name).is_dir()


def _default(rule: StageRef, earlier: Mapping[str, str], model: str) -> tuple[Source, ...]:
    """What fills a role that the recipe leaves open."""
    if not rule.auto:
        return ()
    suitable = [Source(name) for name, kind in earlier.items() if kind in rule.default]
    if rule.many:
        return tuple(suitable)
    return tuple(suitable[-1:]) or ((Source(model, outside=True),) if rule.model else ())


def _name_faults(index: int, name: str, earlier: Mapping[str, str]) -> Iterator[Fault]:
    if name in earlier:
        yield Fault(index, "id", f'two stages are called "{name}"', f"give this one a name of its own: `id: {name}2`")
    elif name in RESERVED or not ID.fullmatch(name):
        yield Fault(index, "id", f'"{name}" cannot name a stage', "use letters, digits, - and _, e.g. ppo-fast")


def _reading_faults(
    index: int, stage: AnyStage, inputs: Mapping[str, tuple[Source, ...]], nodes: Sequence[Node]
) -> Iterator[Fault]:
    """What a reward model of this recipe, read anew once it is trained, will not have."""
    if stage.kind != "reward" or not stage.trained:
        return
    names = {source.name for source in inputs.get("base", ())}
    base = next((node.config for node in nodes if node.id in names), None)
    if base is None or base.kind != "reward":
        return
    for name in stage.objectives:
        if name not in base.objectives:
            yield Fault(
                index, "objectives", f'that reward model has no objective "{name}"', did_you_mean(name, base.objectives)
            )
    mine, theirs = stage.ensemble, base.ensemble
    if mine and (theirs is None or (mine.members, mine.of) != (theirs.members, theirs.of)):
        has = f"{theirs.members} members of {theirs.of}" if theirs else "one member"
        yield Fault(
            index, "ensemble", f"that reward model has {has}, not {mine.members} of {mine.of}", "name its own members"
        )


def _reference_fault(
    name: str, kinds: Sequence[str], earlier: Mapping[str, str], later: Sequence[str]
) -> tuple[str, str] | None:
    """(what, hint) why a named stage or model cannot fill a role; None when it can."""
    suitable = [known for known, kind in earlier.items() if kind in kinds]
    if name in suitable or (name not in [*earlier, *later] and is_model(name)):
        return None
    if name in earlier:
        wanted = " or ".join(kinds)
        return f'"{name}" is a stage of kind {earlier[name]}, not {wanted}', did_you_mean(name, suitable)
    if name in later:
        return f'the stage "{name}" comes later', "a stage reads only stages above it: change the order"
    hint = "; ".join(filter(None, [did_you_mean(name, suitable), "a model is written ./FOLDER or OWNER/NAME"]))
    return f'there is no stage "{name}" above', hint
