"""From a world to the data that every stage reads: demonstrations, noisy preferences, prompts, pretraining text."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from assay.config import did_you_mean
from assay.data.items import as_preferences
from assay.data.prepared import Prepared, Splits
from assay.errors import ConfigError
from assay.rng import python_rng
from assay.types import Demonstration, JudgedSteps, Preference, Prompt, Ranking, Verdict
from assay.worlds.annotator import Annotator, Pair, measure, panel
from assay.worlds.config import WorldData
from assay.worlds.world import SPLITS, Split, World, load_world

T = TypeVar("T")
MEASURED = 2000  # rows behind each measured number of the report


def prepare_world(config: WorldData, seed: int) -> Prepared:
    """Make all data of one run. The same config and seed give the same data; splits never share a prompt."""
    world = load_world(config.world)
    for name in config.objectives:
        if name not in world.weights:
            raise ConfigError(f'data.objectives: people here know no "{name}"', hint=did_you_mean(name, world.weights))
    people = panel(world, config.annotator, seed)
    prompts = {split: world.prompts(split) for split in SPLITS}

    def demonstrations(split: Split) -> list[Demonstration]:
        rows = _cycle(prompts[split], _size(config.demonstrations, config, split))
        return [_demonstration(world, prompt, config, (seed, split, n)) for n, prompt in rows]

    def rankings(split: Split) -> list[Ranking]:
        rows = _cycle(prompts[split], _size(config.rankings, config, split))
        return [_ranking(world, people, prompt, config, (seed, split, n)) for n, prompt in rows]

    def preferences(split: Split) -> list[Preference]:
        rows = _cycle(prompts[split], _size(config.preferences, config, split))
        pairs = [_preference(world, people, prompt, config, (seed, split, n)) for n, prompt in rows]
        return pairs + [pair for ranking in getattr(ranked, split) for pair in as_preferences(ranking)]

    def steps(split: Split) -> list[JudgedSteps]:
        rows = _cycle(prompts[split], _size(config.steps, config, split))
        return [_judged_steps(world, people, prompt, config, (seed, split, n)) for n, prompt in rows]

    def verdicts(split: Split) -> list[Verdict]:
        rows = _cycle(prompts[split], _size(config.verdicts, config, split))
        return [_verdict(world, people, prompt, config, (seed, split, n)) for n, prompt in rows]

    shown, ranked = _per_split(demonstrations), _per_split(rankings)
    compared, stepwise, judged = _per_split(preferences), _per_split(steps), _per_split(verdicts)
    text = list(world.corpus(config.documents, seed))
    counts = {
        "demonstrations": shown.counts(),
        "preferences": compared.counts(),
        "rankings": ranked.counts(),
        "steps": stepwise.counts(),
        "verdicts": judged.counts(),
        "prompts": {split: len(prompts[split]) for split in SPLITS},
        "documents": len(text),
    }
    report = {
        "world": world.name,
        "counts": counts,
        "kinds": dict(sorted(Counter(prompt.kind for prompt in prompts["train"]).items())),
        "annotators": {
            "set": config.annotator.model_dump(),
            "measured": measure(world, people, _measured_pairs(config, world, seed), seed),
        },
        "truth": _worth(world, shown.train[:MEASURED]),
    }
    return Prepared(shown, compared, judged, Splits(**prompts), ranked, stepwise, text, report)


def _per_split(make: Callable[[Split], list[T]]) -> Splits[T]:
    return Splits(train=make("train"), validation=make("validation"), test=make("test"))


def _size(train: int, config: WorldData, split: Split) -> int:
    return train if split == "train" or not train else max(1, round(train * config.held_out))


def _cycle(prompts: Sequence[Prompt], size: int) -> list[tuple[int, Prompt]]:
    """`size` prompts, numbered; as evenly spread over the prompts (and their kinds) as can be."""
    return [(number, prompts[number % len(prompts)]) for number in range(size)]


def _demonstration(world: World, prompt: Prompt, config: WorldData, key: tuple[int, str, int]) -> Demonstration:
    rng = python_rng(key[0], "demonstration", *key[1:])
    return Demonstration(prompt, world.demonstrate(prompt, rng.uniform(*config.quality), rng))


def _pair(world: World, prompt: Prompt, config: WorldData, key: tuple[int, str, int]) -> Pair:
    a, b = _answers(world, prompt, config, python_rng(key[0], "pair", *key[1:]), 2)
    return prompt, a, b


def _answers(world: World, prompt: Prompt, config: WorldData, rng: random.Random, count: int) -> list[str]:
    """Different answers by people of different skill."""
    answers: dict[str, None] = {}
    while len(answers) < count:
        answers[world.demonstrate(prompt, rng.uniform(*config.pair_quality), rng)] = None
    return list(answers)


def _ranking(
    world: World, people: Sequence[Annotator], prompt: Prompt, config: WorldData, key: tuple[int, str, int]
) -> Ranking:
    rng = python_rng(key[0], "ranking", *key[1:])
    answers = _answers(world, prompt, config, rng, config.ranking_size)
    person, objective = _asked(people, config, key, rng)
    return replace(person.rank(world, prompt, answers, rng), objective=objective)


def _judged_steps(
    world: World, people: Sequence[Annotator], prompt: Prompt, config: WorldData, key: tuple[int, str, int]
) -> JudgedSteps:
    rng = python_rng(key[0], "steps", *key[1:])
    (answer,) = _answers(world, prompt, config, rng, 1)
    return rng.choice(people).judge_steps(world, prompt, answer, rng)


def _preference(
    world: World, people: Sequence[Annotator], prompt: Prompt, config: WorldData, key: tuple[int, str, int]
) -> Preference:
    rng = python_rng(key[0], "vote", *key[1:])
    person, objective = _asked(people, config, key, rng)
    return replace(person.prefer(world, *_pair(world, prompt, config, key), rng), objective=objective)


def _asked(
    people: Sequence[Annotator], config: WorldData, key: tuple[int, str, int], rng: random.Random
) -> tuple[Annotator, str]:
    """Somebody, and what they look at: one objective alone, or "" for all things considered."""
    person = rng.choice(people)
    if not config.objectives:
        return person, ""
    objective = python_rng(key[0], "objective", *key[1:]).choice(config.objectives)
    return person.asked_about(objective), objective


def _verdict(
    world: World, people: Sequence[Annotator], prompt: Prompt, config: WorldData, key: tuple[int, str, int]
) -> Verdict:
    """One answer, called good when the person likes it better than another one that they have in mind."""
    rng = python_rng(key[0], "verdict", *key[1:])
    prompt, answer, other = _pair(world, prompt, config, (rng.getrandbits(63), *key[1:]))
    return Verdict(prompt, answer, rng.choice(people).prefer(world, prompt, answer, other, rng).chosen == answer)


def _measured_pairs(config: WorldData, world: World, seed: int) -> list[Pair]:
    """Fresh pairs like those that are labelled, for measuring the annotators."""
    numbered = _cycle(world.prompts("train"), MEASURED)
    return [_pair(world, prompt, config, (seed, "measured", number)) for number, prompt in numbered]


def _worth(world: World, rows: Sequence[Demonstration]) -> dict[str, float]:
    """The truth about the demonstrations: how far from the best they are, in points."""
    worth = [world.truth(row.prompt, row.response).total for row in rows]
    best = [world.best(row.prompt) for row in rows]
    return {
        "best_mean": sum(best) / len(best),
        "demonstrations_mean": sum(worth) / len(worth),
        "demonstrations_at_best": sum(one >= most - 1e-9 for one, most in zip(worth, best, strict=True)) / len(worth),
    }
