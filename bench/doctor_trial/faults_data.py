"""Faults of data, tokens and machine, each in an otherwise healthy data set or toy run; and the healthy ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from bench.doctor_trial import finished_runs
from bench.doctor_trial.broken_code import end_masked
from bench.doctor_trial.fault import SEED, Fault, chance, log_of, memory
from bench.doctor_trial.words import WORDS, spoken
from tests.unit.stages.toy import COLOURS, QUESTIONS, Memory, run_in_two_parts, toy_data, toy_model
from tokenizers import normalizers

from assay.data.baselines import Baselines
from assay.data.config import CleanConfig, FileData
from assay.data.prepare import prepare_files
from assay.data.prepared import Prepared, Splits
from assay.data.render import Renderer, Row, encode_all
from assay.doctor.data import Data, Reading
from assay.doctor.detector import Evidence
from assay.doctor.labels import Scored
from assay.doctor.log import Log
from assay.doctor.machine import Cursor, Machine, Settings
from assay.doctor.tokens import Endings, Tokens
from assay.document import read_yaml
from assay.evaluation.preference import preference_report
from assay.models.precision import product_seconds
from assay.models.roles import load_policy, load_reward_model
from assay.models.scratch import train_tokenizer
from assay.stages import loop, reward, sft
from assay.stages.config import OptimConfig, RewardConfig, SFTConfig
from assay.stages.context import StageInputs
from assay.types import Demonstration, Preference, Prompt

Record = dict[str, Any]


# Data files that are healthy, and what is done to them.


def pairs(count: int = 600) -> list[Record]:
    """Rows of prompt, chosen and rejected; nothing tells chosen from rejected, no two are alike."""
    rng = chance()
    return [
        {
            "prompt": f"Why is {spoken(rng, 12)}?",
            "chosen": f"Because {spoken(rng, rng.randint(6, 14))}.",
            "rejected": f"Because {spoken(rng, rng.randint(6, 14))}.",
        }
        for _ in range(count)
    ]


def dialogue(row: Record, side: str) -> str:
    """A pair's side as HH-RLHF writes it, with an exchange before."""
    first = f"\n\nHuman: {row['prompt']}\n\nAssistant: Let me think."
    return f"{first}\n\nHuman: Go on.\n\nAssistant: {row[side]}"


def of_rows(rows: Sequence[Record], folder: Path, clean: CleanConfig | None = None) -> Sequence[Evidence]:
    """The rows through the loader: what was left out, what is left, what is reported of it, and its tokens."""
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare_files(FileData(path=str(path), clean=clean or CleanConfig()), seed=SEED.get())
    renderer = Renderer(train_tokenizer([" ".join(WORDS)] * 20, 512), max_length=128)
    return [
        Reading.of(prepared.report),
        Data("data", prepared),
        Log("data", "data", reports={"report": prepared.report}),
        Tokens("reward", renderer, prepared.preferences.train),
    ]


def changed(
    change: Callable[[int, Record], Record], folder: Path, clean: CleanConfig | None = None
) -> Sequence[Evidence]:
    return of_rows([change(number, row) for number, row in enumerate(pairs())], folder, clean)


def empty_cells(folder: Path) -> Sequence[Evidence]:
    return changed(lambda n, row: {**row, "chosen": None} if n % 10 == 0 else row, folder)


def cells_of_words(folder: Path) -> Sequence[Evidence]:
    """As a table library writes them that makes text of everything."""
    return changed(lambda n, row: {**row, "rejected": str(float("nan"))} if n % 20 == 0 else row, folder)


def parts_early(folder: Path) -> Sequence[Evidence]:
    """Dialogues of which every eighth pair differs before the last answer."""

    def whole(n: int, row: Record) -> Record:
        chosen, rejected = (dialogue(row, side) for side in ("chosen", "rejected"))
        return {"chosen": chosen, "rejected": rejected.replace("Go on", "Stop") if n % 8 == 0 else rejected}

    return changed(whole, folder)


def cut_at_the_first_answer(folder: Path, clean: CleanConfig | None = None) -> Sequence[Evidence]:
    """Split at the first "Assistant:" rather than the last, in the dialogues that have several."""

    def cut(n: int, row: Record) -> Record:
        if n % 4:
            return row
        prompt, mark, _ = dialogue(row, "chosen").partition("\n\nAssistant:")
        sides = {side: dialogue(row, side).partition(mark)[2] for side in ("chosen", "rejected")}
        return {"prompt": prompt + mark, **sides}

    return changed(cut, folder, clean)


def same_twice(folder: Path) -> Sequence[Evidence]:
    return changed(lambda n, row: {**row, "rejected": row["chosen"]} if n % 12 == 0 else row, folder)


def padded(folder: Path) -> Sequence[Evidence]:
    """Every chosen answer ends in a phrase."""
    return changed(lambda n, row: {**row, "chosen": row["chosen"] + " I hope that this helps you a lot."}, folder)


def repeated(folder: Path) -> Sequence[Evidence]:
    """A fifth of the rows comes twice, the second time with another opening word."""
    rows = pairs()
    return of_rows([*rows, *({**row, "prompt": "Well, " + row["prompt"]} for row in rows[::5])], folder)


def unlike_in_capitals(folder: Path) -> Sequence[Evidence]:
    """One pair of twelve differs in capitals only, which the tokenizer does not keep."""
    rows = [{**row, "rejected": row["chosen"].upper()} if n % 12 == 0 else row for n, row in enumerate(pairs())]
    tokenizer = tokenizer_of()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    given = [Preference(Prompt.ask(row["prompt"]), row["chosen"], row["rejected"]) for row in rows]
    return [Tokens("reward", Renderer(tokenizer, max_length=128), given)]


def margins_below_zero(folder: Path) -> Sequence[Evidence]:
    """Scores were subtracted for columns that are the wrong way round."""
    return changed(lambda n, row: {**row, "margin": 0.5 if n % 10 == 0 else -0.5}, folder)


# Toy runs.


def small(folder: Path) -> Path:
    torch.set_num_threads(1)
    return toy_model(folder / "base")


def sft_toy(folder: Path, data: Prepared | None = None, epochs: int = 8) -> Memory:
    """A healthy run of the SFT stage; its model lies in the memory's folder."""
    ctx = memory(folder / "sft")
    ctx.folder.mkdir()
    config = SFTConfig(epochs=epochs, batch_size=16, max_length=32, optim=OptimConfig(learning_rate=1e-2))
    sft.run(config, StageInputs(data or toy_data(), str(small(folder))), ctx)
    return ctx


def endings(folder: Path, shown: Sequence[Demonstration] | None = None) -> Endings:
    """Of the policy in the folder, where these demonstrations end."""
    policy = load_policy(folder, trainable=False)
    shown = toy_data().demonstrations.train if shown is None else shown
    return Endings.of("sft", policy, policy.renderer("chat", 32), shown)


def reward_toy(
    folder: Path, data: Prepared, *, epochs: int = 6, agreement: float | None = None, rate: float = 3e-3
) -> Sequence[Evidence]:
    """A run of the reward stage: its log, and its scores of the test pairs."""
    ctx = memory(folder / "reward")
    ctx.folder.mkdir()
    config = RewardConfig(epochs=epochs, batch_size=16, max_length=32, optim=OptimConfig(learning_rate=rate))
    evaluate = partial(_report, rivals=Baselines.fit(data.preferences.train), agreement=agreement)
    final = reward.run(config, StageInputs(data, str(small(folder)), evaluate_preferences=evaluate), ctx)
    model = load_reward_model(ctx.folder, trainable=False, max_length=32)
    test = data.preferences.test
    scored = Scored.of("reward", model.score_texts, test, data.preferences.train)
    return [log_of("reward", config, ctx, final), scored]


def _report(
    asked: Sequence[Preference], chosen: Any, rejected: Any, rivals: Baselines, agreement: float | None
) -> dict[str, Any]:
    return preference_report(chosen, rejected, seed=SEED.get(), pairs=asked, baselines=rivals, agreement=agreement)


def flipped(items: Sequence[Preference], share: float, salt: int = 0) -> list[Preference]:
    """The pairs, that share of them the wrong way round."""
    rng = chance(salt)
    return [replace(p, chosen=p.rejected, rejected=p.chosen) if rng.random() < share else p for p in items]


def asked_of(items: Sequence[Preference], source: str) -> list[Preference]:
    return [replace(pair, prompt=replace(pair.prompt, source=source)) for pair in items]


def swapped(folder: Path, share: float = 1.0) -> Sequence[Evidence]:
    """Training labels turned round, test labels as people gave them."""
    data = toy_data()
    train = flipped(data.preferences.train, share)
    return reward_toy(folder, replace(data, preferences=replace(data.preferences, train=train)))


def swapped_source(folder: Path) -> Sequence[Evidence]:
    """Of two sources one has its columns swapped, in training and in test."""
    own = toy_data().preferences
    both = [*asked_of(own.test, "ours"), *asked_of(flipped(own.test, 1.0), "theirs")[::2]]
    parts = Splits([*asked_of(own.train, "ours"), *asked_of(flipped(own.train, 1.0), "theirs")[::2]], both, both)
    return reward_toy(folder, replace(toy_data(), preferences=parts))


def longer_wins(folder: Path) -> Sequence[Evidence]:
    """Of two answers the longer is always the chosen one, and nothing else tells them apart."""
    rng = chance()

    def drawn(count: int) -> list[Preference]:
        sizes = [sorted(rng.sample(range(1, 9), 2)) for _ in range(count)]
        return [
            Preference(
                rng.choice(QUESTIONS), " ".join(rng.choices(COLOURS, k=long)), " ".join(rng.choices(COLOURS, k=short))
            )
            for short, long in sizes
        ]

    parts = Splits(drawn(160), drawn(80), drawn(240))
    return reward_toy(folder, replace(toy_data(), preferences=parts), epochs=4)


def noisy(folder: Path) -> Sequence[Evidence]:
    own = toy_data().preferences
    parts = Splits(*(flipped(list(own.test) * times, 0.25, salt=times) for times in (4, 1, 6)))
    return reward_toy(folder, replace(toy_data(), preferences=parts), epochs=3)


def evaluated_on_train(folder: Path) -> Sequence[Evidence]:
    """Pairs labelled by people who agree in 62 % of cases, learned by heart, and measured on themselves."""
    rng = chance()
    answers = [" ".join(rng.choices(COLOURS, k=6)) for _ in range(160)]
    learned = [
        Preference(Prompt.ask(f"what is {rng.choice(COLOURS)} {n}?"), answers[2 * n], answers[2 * n + 1])
        for n in range(80)
    ]
    data = replace(toy_data(), preferences=Splits(learned, learned, learned))
    return reward_toy(folder, data, epochs=25, agreement=0.62)[:1]


def ends_masked(folder: Path) -> Sequence[Evidence]:
    """Pad and end are one token, and pads are masked by their id."""
    with patch("assay.stages.causal.collate", end_masked):
        ctx = sft_toy(folder)
    return [endings(ctx.folder)]


def rows_too_short(folder: Path) -> Sequence[Evidence]:
    """A quarter of the tokens that the answers need; the tokens say so, and so does the model."""
    rng = chance()
    long = [Demonstration(d.prompt, " ".join(rng.choices(COLOURS, k=40))) for d in toy_data().demonstrations.train]
    data = replace(toy_data(), demonstrations=Splits(long, long[:20], long[:20]))
    ctx = sft_toy(folder, data, epochs=1)
    policy = load_policy(ctx.folder, trainable=False)
    return [Tokens("sft", policy.renderer("chat", 32), long), endings(ctx.folder)]


def tokenizer_of(template: str | None = None, bos: str | None = None) -> Any:
    tokenizer = train_tokenizer([" ".join(WORDS)] * 20, 512)
    if bos:
        tokenizer.add_special_tokens({"bos_token": bos})
    tokenizer.chat_template = template or tokenizer.chat_template
    return tokenizer


def items(count: int = 200) -> list[Demonstration]:
    return [Demonstration(Prompt.ask(row["prompt"]), row["chosen"]) for row in pairs(count)]


def begin_twice(folder: Path) -> Sequence[Evidence]:
    """A template that begins, in a loop that begins too."""
    loop_ = "{% for m in messages %}{{ bos_token if loop.first }}{{ m['role'] }}: {{ m['content'] }}\n"
    loop_ += "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    template = "{{ bos_token }}" + loop_ + "{% if add_generation_prompt %}assistant: {% endif %}"
    return [Tokens("sft", Renderer(tokenizer_of(template, "<|begin|>"), max_length=128), items())]


class AtOnce(Renderer):
    """Encodes prompt and answer as one text, and counts the prompt's tokens apart: what many loaders do."""

    def row(self, prompt: Prompt, response: str) -> Row:
        text = f"Question: {prompt.text} Answer: "
        return Row([*self.encoded(text + response), self.eos_id], len(self.encoded(text)))

    def fitted(self, prompt: Prompt, *, reserve: int = 1) -> tuple[list[int], bool]:
        return self.encoded(f"Question: {prompt.text} Answer: "), False

    def encoded(self, text: str) -> list[int]:
        return encode_all(self.tokenizer, [(text, False)])[text, False]


def grown_together(folder: Path) -> Sequence[Evidence]:
    """The prompt ends in a space, which the first word of the answer takes to itself."""
    rng = chance()
    shown = [Demonstration(item.prompt, spoken(rng, 6)) for item in items()]
    return [Tokens("sft", AtOnce(tokenizer_of(), max_length=128), shown)]


# Machine.


def quoted(folder: Path) -> Sequence[Evidence]:
    return [Settings.of(read_yaml("epochs: 2\noptim:\n  learning_rate: 1,5e-5\n", "recipe.yaml"), RewardConfig)]


def read_by_another(folder: Path) -> Sequence[Evidence]:
    return [Settings.foreign("train.yaml", yaml.safe_load("lr: 1e-5\nepochs: 3\n"))]


def asked_for_half(folder: Path) -> Sequence[Evidence]:
    """Weights in the 16-bit format that this processor is slowest in."""
    slow = max((torch.bfloat16, torch.float16), key=product_seconds)
    with patch("assay.models.load.weight_dtype", lambda *_, **__: slow):
        policy = load_policy(small(folder), trainable=False)
    return [Machine.of("sft", next(policy.model.parameters()).dtype)]


class Taken(list[list[int]]):
    """A plan that notes which batch every step takes; `late` is the step at which its loader was started anew."""

    def __init__(self, plan: Sequence[list[int]], seen: list[list[int]], late: int) -> None:
        super().__init__(plan)
        self.seen, self.late = seen, late

    def __getitem__(self, step: Any) -> Any:
        self.seen.append(super().__getitem__(step - self.late))
        return self.seen[-1]


def resumed(folder: Path, *, lost: bool) -> Sequence[Evidence]:
    """The SFT stage interrupted and started again; with `lost`, its loader begins at the first batch again."""
    seen: list[list[int]] = []
    plans: list[list[list[int]]] = []
    ctx, stop_at = memory(folder), 5

    def plan(*given: Any) -> Taken:
        plans.append(PLAN(*given))
        return Taken(plans[-1], seen, stop_at if lost and len(plans) > 1 else 0)

    config = SFTConfig(epochs=2, batch_size=16, max_length=32)
    with patch("assay.stages.loop.plan", plan):
        final = run_in_two_parts(sft.run, config, StageInputs(toy_data(), str(small(folder))), ctx, stop_at)
    return [Cursor("sft", plans[0], seen), log_of("sft", config, ctx, final)]


PLAN = loop.plan


# Healthy ones.


def healthy_rows(folder: Path) -> Sequence[Evidence]:
    return of_rows(pairs(), folder)


def healthy_reward(folder: Path) -> Sequence[Evidence]:
    return reward_toy(folder, toy_data(), agreement=1.0)


def healthy_sft(folder: Path) -> Sequence[Evidence]:
    ctx = sft_toy(folder)
    policy = load_policy(ctx.folder, trainable=False)
    return [endings(ctx.folder), Tokens("sft", policy.renderer("chat", 32), toy_data().demonstrations.train)]


def healthy_machine(folder: Path) -> Sequence[Evidence]:
    settings = Settings.of(read_yaml("id: '7'\noptim: {learning_rate: 1e-5}\n", "recipe.yaml"), RewardConfig)
    return [settings, Machine.of("sft", torch.float32), *resumed(folder, lost=False)]


HEALTHY: Mapping[str, Callable[[Path], Sequence[Evidence]]] = {
    "rows": healthy_rows,
    "reward": healthy_reward,
    "sft": healthy_sft,
    "machine": healthy_machine,
}

FAULTS: tuple[Fault, ...] = (
    Fault("swapped-labels", "all training labels the wrong way round", swapped),
    Fault("swapped-labels", "seven training labels of ten the wrong way round", partial(swapped, share=0.7)),
    Fault("swapped-labels", "one of two sources has its columns swapped", swapped_source),
    Fault("swapped-labels", "margins were computed for swapped columns", margins_below_zero),
    Fault("split-leak", "a fifth of the rows comes twice, with another opening word", repeated),
    Fault("shortcut", "every chosen answer ends in the same phrase", padded),
    Fault("shortcut", "the longer answer is always the chosen one, and a model has learnt it", longer_wins),
    Fault("response-cut-away", "rows hold half of the answers' tokens", rows_too_short),
    Fault("eos-not-learned", "pads are masked by id, and the end is the pad", ends_masked, finished_runs.ends_masked),
    Fault("mis-split-dialogue", "an eighth of the pairs part before the last answer", parts_early),
    Fault("mis-split-dialogue", "dialogues split at their first answer", cut_at_the_first_answer),
    Fault(
        "mis-split-dialogue",
        "the same, in answers that the settings keep",
        partial(cut_at_the_first_answer, clean=CleanConfig(artefacts=False)),
    ),
    Fault("identical-pairs", "one pair of twelve has one answer twice", same_twice),
    Fault("identical-pairs", "one pair of twelve differs in capitals, which the tokenizer drops", unlike_in_capitals),
    Fault("label-noise", "a quarter of all labels flipped", noisy),
    Fault("too-good-to-be-true", "the test pairs are the training pairs", evaluated_on_train),
    Fault("boundary-tokens", "prompt and answer encoded as one text", grown_together),
    Fault("double-bos", "the template begins twice", begin_twice),
    Fault("text-that-is-no-text", "one chosen answer of ten is null", empty_cells),
    Fault("text-that-is-no-text", "one rejected answer of twenty is the word nan", cells_of_words),
    Fault("number-as-text", "a decimal comma in a recipe", quoted),
    Fault("number-as-text", "1e-5 read by PyYAML", read_by_another),
    Fault("slow-number-format", "the 16-bit format that the processor imitates", asked_for_half),
    Fault("resume-skips", "the loader begins anew after a restart", partial(resumed, lost=True)),
)
