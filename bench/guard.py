# ruff: noqa: RUF001  (answers in other scripts look like Latin letters)
"""Measures the guard: how many broken responses it catches, and how many good ones it flags.

    make guard                               →  docs/results/guard.md
    python -m bench.guard DATA --fit         →  src/assay/assets/ordinary.npz, counted on the first half of the data

Good responses are answers that people wrote or strong models gave, as they are. Broken ones are made from them in ways
that leave no doubt, or sampled from models until they loop. Rows are halved by their prompt; results are of the second.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import json
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench import common

from assay import rng
from assay.models.policy import load_policy
from assay.rollout.broken import REASONS, Flag, check
from assay.rollout.guard import safe
from assay.rollout.ordinary import LETTERS, STEPS, Classes, letters
from assay.statistics import wilson
from assay.types import FinishReason, Message, Prompt

Answer = tuple[Prompt, str, FinishReason | None]
Kinds = dict[str, list[Answer]]

FREQUENT = 200
"""Words with a class of their own."""
EACH = 60
"""Broken responses of each kind."""
TURN = re.compile(r"\n\n(Human|Assistant): ?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds lima/, dolly-1k/, hh-rlhf/ …")
    parser.add_argument("--fit", action="store_true", help="count the tables of ordinary text, and measure nothing")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_args()
    if asked.fit:
        fit(asked.data)
        return
    facts = common.origin("make guard")
    good = {name: halves(rows)[1] for name, rows in sources(asked.data).items()}
    pool = [answer for rows in good.values() for answer in rows if 40 <= len(answer[1].split()) <= 200]
    noise = rng.python_rng(0, "guard")
    real = {name: halves(rows)[1] for name, rows in unlabelled(asked.data).items()}
    broken = {**looping(pool, [row for rows in real.values() for row in rows], noise), **made(pool, noise)}
    undecided = cut_silently(pool, noise)
    common.write(asked.results / "guard.md", page(facts, good, broken, undecided, real))


# --- Data


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON, JSON lines or CSV file, gzipped or not."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    file = io.StringIO(text.decode("utf-8"), newline="")
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind == ".csv":
        return list(csv.DictReader(file))
    return json.load(file) if kind == ".json" else [json.loads(line) for line in file if line.strip()]


def asking(*parts: str | None) -> Prompt:
    return Prompt.ask("\n".join(part for part in parts if part))


def sources(data: Path) -> dict[str, list[Answer]]:
    """Good answers by where they come from, as ended by themselves; none is left out, and none is looked at."""
    tldr = rows_of(data / "summarize-tldr/tldr_oai1b_judged.csv.gz")
    gpt4 = rows_of(data / "alpaca_eval/reference_outputs_gpt4_1106_preview.json.gz")
    found: dict[str, list[tuple[Prompt, str]]] = {
        "LIMA, people": [(asking(r["instruction"]), r["output"]) for r in rows_of(data / "lima/lima.json.gz")],
        "Dolly, people": [
            (asking(r["instruction"], r["context"]), r["response"])
            for r in rows_of(data / "dolly-1k/databricks_dolly_1k.csv.gz")
        ],
        "TL;DR, people": [(asking(r["query"]), r["reference_responses"]) for r in tldr],
        "GSM8K, people": [(asking(r["question"]), r["answer"]) for r in rows_of(data / "gsm8k/test.jsonl")],
        "HumanEval, code": [
            (asking(r["prompt"]), r["canonical_solution"]) for r in rows_of(data / "humaneval/HumanEval.jsonl.gz")
        ],
        "seed tasks, people": [
            (asking(r["instruction"], one["input"]), one["output"])
            for r in rows_of(data / "alpaca/seed_tasks.jsonl")
            for one in r["instances"]
        ],
        "QA feedback, people": [
            (asking(r["question"]), r["gold"])
            for r in rows_of(data / "qa-feedback/dev_feedback.json.gz")
            if isinstance(r["gold"], str)
        ],
        "Alpaca, GPT-4": [
            (asking(r["instruction"], r["input"]), r["output"])
            for r in rows_of(data / "llamafactory-demo/alpaca_en_demo.json")
        ],
        "GPTeacher, GPT-4": [
            (asking(r["instruction"], r["input"]), r["response"]) for r in rows_of(data / "gpteacher/roleplay.json.gz")
        ],
        "AlpacaEval, GPT-4": [(asking(r["instruction"]), r["output"]) for r in gpt4],
        "safety answers": [
            (asking(r["instruction"], r["input"]), r["output"])
            for r in rows_of(data / "safety-tuned-llamas/safety_only_data_Instructions.json.gz")
        ],
    }
    return {name: [(prompt, text, "stop") for prompt, text in rows] for name, rows in found.items()}


def unlabelled(data: Path) -> dict[str, list[Answer]]:
    """Real answers of which nobody says whether they are whole: how they ended is not known."""
    found: dict[str, list[Answer]] = {}
    for name in ("helpful", "harmless-base"):
        rows = rows_of(data / f"hh-rlhf/{name}.jsonl.gz")
        for side in ("chosen", "rejected"):
            found[f"HH-RLHF {name}, {side}"] = [(*dialogue(row[side]), None) for row in rows]
    for row in rows_of(data / "instructgpt-samples/tldr_samples.csv.gz"):
        model = row["model_type"].split("-")[0]
        found.setdefault(f"TL;DR samples, {model}", []).append((asking(row["context"]), row["sample"], None))
    asked = rows_of(data / "alpaca_eval/reference_outputs_gpt4_1106_preview.json.gz")
    for row in rows_of(data / "alpaca_eval/model_outputs.jsonl.gz"):
        if row["model"] in ("claude-2", "vicuna-13b", "chatglm2-6b", "phi-2", "text_davinci_001"):
            prompt = asking(asked[int(row["instruction_id"])]["instruction"])
            found.setdefault(f"AlpacaEval, {row['model']}", []).append((prompt, row["output"], None))
    return found


def dialogue(text: str) -> tuple[Prompt, str]:
    """HH-RLHF's text as a dialogue and its last answer."""
    _, *parts = TURN.split(text)
    turns = [
        Message("user" if who == "Human" else "assistant", said.strip())
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    return Prompt(tuple(turns[:-1])), turns[-1].content


def halves(rows: Sequence[Answer]) -> tuple[list[Answer], list[Answer]]:
    """By a hash of the prompt: to calibrate on, and to measure on."""
    parts: tuple[list[Answer], list[Answer]] = ([], [])
    for row in rows:
        parts[hashlib.blake2b(row[0].text.encode(), digest_size=1).digest()[0] & 1].append(row)
    return parts


# --- The tables of ordinary text


def fit(data: Path) -> None:
    """Count letters and classes of words on the first half of what may be shared, and on encyclopedia articles."""
    good, real = sources(data), unlabelled(data)
    names = ("Dolly, people", "TL;DR, people", "GSM8K, people", "HumanEval, code", "GPTeacher, GPT-4")
    rows = [row for name in names for row in halves(good[name])[0]]
    texts = [text for prompt, answer, _ in rows for text in (answer, prompt.text)]
    for name in ("helpful, chosen", "helpful, rejected", "harmless-base, chosen"):
        texts += [text for _, text, _ in halves(real[f"HH-RLHF {name}"])[0]]
    with gzip.open(data / "wikitext-2/valid.txt.gz", "rt", encoding="utf-8") as file:
        texts.append(re.sub(r" @(.)@ ", r"\1", file.read()).replace("<unk>", ""))
    words = Counter(
        word.lower().replace("’", "'") for text in texts for word in re.findall(r"[A-Za-z]+(?:['’][a-z]+)?", text)
    )
    classes = Classes(tuple(word for word, _ in words.most_common(FREQUENT)))
    letters_LLL, order_CC = np.zeros((LETTERS,) * 3), np.zeros((len(classes),) * 2)
    for text in texts:
        codes, numbers = letters(text), classes.of(text)
        np.add.at(letters_LLL, (codes[:-2], codes[1:-1], codes[2:]), 1)
        np.add.at(order_CC, (numbers[:-1], numbers[1:]), 1)
    single_L, single_C = (table.sum(axis=tuple(range(table.ndim - 1))) + 1 for table in (letters_LLL, order_CC))
    single_L, single_C = single_L / single_L.sum(), single_C / single_C.sum()
    after_two = smoothed(letters_LLL, smoothed(letters_LLL.sum(0), single_L, 5), 2)
    path = common.ROOT / "src/assay/assets/ordinary.npz"
    np.savez_compressed(
        path,
        letters=stored(after_two * LETTERS),
        order=stored(smoothed(order_CC, single_C, 10) / single_C),
        words=np.array(classes.words),
    )
    print(path)


def smoothed(counts: np.ndarray, prior: np.ndarray, strength: float) -> np.ndarray:
    """Conditional probabilities, drawn towards a prior by so many imagined counts."""
    return (counts + strength * prior) / (counts.sum(-1, keepdims=True) + strength)


def stored(ratios: np.ndarray) -> np.ndarray:
    return np.clip(np.round(np.log(ratios) * STEPS), -127, 127).astype(np.int8)


# --- Broken responses


def made(pool: Sequence[Answer], noise: random.Random) -> Kinds:
    """Broken responses of every kind, each from other good ones."""
    vocabulary = sorted({word for _, text, _ in pool for word in re.findall("[a-z]{3,}", text)})
    keys = ["qwertyuiop", "asdfghjkl", "zxcvbnm"]
    tokenizer = load_policy("embedded", trainable=False).tokenizer
    signs = [chr(code) for code in range(33, 127)]
    exotic = [chr(noise.randrange(*span)) for span in ((0x370, 0x1400), (0x3041, 0xD7A0)) for _ in range(200)]

    def letters_of(text: str) -> str:
        return " ".join("".join(noise.sample(word, len(word))) for word in text.split())

    def words_of(text: str) -> str:
        return " ".join(noise.sample(text.split(), len(text.split())))

    def begun(text: str, rest: str) -> str:
        return f"{text[: len(text) // 2]} {rest}"

    def again(text: str, unit: str, between: str = " ") -> str:
        return begun(text, between.join([unit] * noise.randrange(8, 40)))

    def phrase(text: str, words: int) -> str:
        found = text.split()
        start = noise.randrange(len(found) - words)
        return " ".join(found[start : start + words])

    def numbered(text: str) -> str:
        return "\n".join(f"{number}. {text}" for number in range(1, 13))

    def marked(text: str, mark: str) -> str:
        place = text.rfind(" ", 0, noise.randrange(len(text) // 4, len(text)))
        return text[:place] + mark + text[place:]

    def turned(text: str, role: str, other: str) -> str:
        return f"{text}\n\n{role}{other}"

    def keyboard() -> str:
        return " ".join("".join(noise.choices(noise.choice(keys), k=noise.randrange(3, 10))) for _ in range(20))

    def random_letters() -> str:
        return "".join(noise.choices("abcdefghijklmnopqrstuvwxyz     ", k=200))

    def random_tokens() -> str:
        return tokenizer.decode([noise.randrange(len(tokenizer)) for _ in range(60)], skip_special_tokens=True)

    specials = [
        "<|im_end|>",
        "<|endoftext|>",
        "</s>",
        "[INST]",
        "<|eot_id|>",
        "<pad>",
        "<|assistant|>",
        "[SEP]",
        "<eos>",
    ]
    roles = [
        "Human: ",
        "Assistant: ",
        "User: ",
        "### Assistant: ",
        "### Human: ",
        "### Instruction:\n",
        "### Response:\n",
    ]
    blanks = ["", " ", "\n\n", "\t", "\u200b\u200b", "...", "…", ". . .", "\ufeff", "---", "!!!", "\u00a0"]
    kinds: dict[str, Callable[[Prompt, str, str], str]] = {
        "loop: a letter": lambda p, t, o: begun(t, noise.choice("aenoh") * 120),
        "loop: a syllable": lambda p, t, o: again(t, noise.choice(["haha", "lalu", "noti", "xoxo"]) * 3, ""),
        "loop: a word": lambda p, t, o: again(t, max(phrase(t, 2).split(), key=len) + "er"),
        "loop: a phrase": lambda p, t, o: again(t, phrase(t, noise.randrange(2, 6))),
        "loop: a long phrase": lambda p, t, o: again(t, phrase(t, noise.randrange(8, 16))),
        "loop: numbered lines": lambda p, t, o: numbered(phrase(t, 6)),
        "gibberish: letters": lambda p, t, o: random_letters(),
        "gibberish: keys": lambda p, t, o: keyboard(),
        "gibberish: letters of words shuffled": lambda p, t, o: letters_of(t),
        "gibberish: written backwards": lambda p, t, o: t[::-1],
        "gibberish: words shuffled": lambda p, t, o: words_of(t),
        "gibberish: words at random": lambda p, t, o: " ".join(noise.choices(vocabulary, k=50)),
        "gibberish: tokens at random": lambda p, t, o: random_tokens(),
        "gibberish: signs": lambda p, t, o: "".join(noise.choices(signs, k=120)),
        "gibberish: scripts at random": lambda p, t, o: "".join(noise.choices(exotic, k=100)),
        "gibberish: begins well": lambda p, t, o: begun(t, random_letters()),
        "gibberish: wrong encoding": lambda p, t, o: marked(t, " “café” naïve").encode().decode("cp1252", "replace"),
        "gibberish: replacement characters": lambda p, t, o: marked(t, "\ufffd\ufffd"),
        "gibberish: control characters": lambda p, t, o: marked(t, noise.choice("\x00\x07\x08\x1b")),
        "empty": lambda p, t, o: noise.choice(blanks),
        "truncated: at the limit": lambda p, t, o: t[: noise.randrange(10, len(t))],
        "echo: the prompt": lambda p, t, o: p.text,
        "echo: the prompt and an answer": lambda p, t, o: f"{p.text.strip()} {t}",
        "echo: nearly the prompt": lambda p, t, o: p.text.lower().replace(",", ""),
        "echo: an earlier answer": lambda p, t, o: t,
        "language: another": lambda p, t, o: " ".join(noise.sample(noise.choice(list(SENTENCES.values())), 3)),
        "leak: special token": lambda p, t, o: marked(t, noise.choice(specials)),
        "leak: next turn": lambda p, t, o: turned(t, noise.choice(roles), o),
    }
    broken: Kinds = {}
    for name, breaks in kinds.items():
        fit_for = [row for row in pool if suits(name, row[0])]
        picked = noise.sample(fit_for, EACH)
        others = noise.sample(pool, EACH)
        broken[name] = []
        for (prompt, text, _), (_, other, _) in zip(picked, others, strict=True):
            finish: FinishReason = "length" if name == "truncated: at the limit" else "stop"
            if name == "echo: an earlier answer":
                said = Message("assistant", text)
                prompt = Prompt((*prompt.messages, said, Message("user", "Thanks. What else should I know?")))
            broken[name].append((prompt, breaks(prompt, text, other), finish))
    return broken


def suits(kind: str, prompt: Prompt) -> bool:
    """Whether a kind of fault is one with this prompt: a dialogue may be asked for, and a short prompt said again."""
    if kind.startswith("echo"):
        return len(prompt.text.split()) >= 8 and prompt.text.strip()[-1] in ".?!"
    if kind.startswith(("language", "leak")):
        return not re.search(
            r"(?i)translat|language|dialog|convers|chat|role|interview|script|code|program|prompt", prompt.text
        )
    return True


SENTENCES = {
    "German": [
        "Das ist eine gute Frage, und die Antwort ist nicht so einfach.",
        "Man sollte sich zuerst ein Bild von der Lage machen.",
        "Es wird auch davon abhängen, wie viel Zeit zur Verfügung steht.",
        "Ich würde mit den kleinen Schritten anfangen und nicht mit den großen.",
    ],
    "French": [
        "C'est une bonne question, et la réponse n'est pas si simple.",
        "Il faut d'abord se faire une idée de la situation avec les autres.",
        "Cela dépend aussi du temps que vous avez pour le faire.",
        "Je commencerais par les petites choses qui sont sur la table.",
    ],
    "Spanish": [
        "Es una buena pregunta, y la respuesta no es tan sencilla.",
        "Primero hay que hacerse una idea de la situación con los demás.",
        "También depende del tiempo que se tiene para hacerlo.",
        "Yo empezaría por las cosas pequeñas que están en la mesa.",
    ],
    "Russian": [
        "Это хороший вопрос, и ответ на него не так прост.",
        "Сначала нужно составить себе представление о положении дел.",
        "Многое зависит от того, сколько у вас есть времени.",
        "Я бы начал с малого и не торопился.",
    ],
    "Chinese": [
        "这是一个很好的问题，答案并不那么简单。",
        "首先应该了解一下目前的情况。",
        "这也取决于你有多少时间可以用来做这件事。",
        "我会从小事开始，然后再做大事。",
    ],
    "Japanese": [
        "それはよい質問ですが、答えはそれほど簡単ではありません。",
        "まず、今の状況をよく知ることが大切です。",
        "どれだけ時間があるかにもよります。",
        "わたしなら小さなことから始めます。",
    ],
    "Arabic": [
        "هذا سؤال جيد والجواب عليه ليس سهلا كما يبدو.",
        "يجب أولا أن نفهم الوضع الحالي جيدا.",
        "يعتمد ذلك أيضا على الوقت المتاح لك.",
        "كنت سأبدأ بالأشياء الصغيرة قبل الكبيرة.",
    ],
}
"""Answers that fit any question, in other languages."""


def looping(pool: Sequence[Answer], real: Sequence[Answer], noise: random.Random) -> Kinds:
    """Real loops: of models whose answers are in the data, and of a trigram model that takes the likeliest words."""
    followers: dict[tuple[str, ...], Counter[str]] = {}
    for _, text, _ in pool:
        words = text.split()
        for a, b, c in zip(words, words[1:], words[2:], strict=False):
            followers.setdefault((a, b), Counter())[c] += 1
    greedy: list[Answer] = []
    for prompt, text, _ in pool:
        words = text.split()[:2]
        for _ in range(160):
            found = followers.get(tuple(words[-2:]), Counter()).most_common(3)
            if not found:
                break
            words.append(found[0][0] if noise.random() < 0.98 else noise.choice(found)[0])
        greedy.append((prompt, " ".join(words), "stop"))
    return {
        "loop: a trigram model's": [row for row in greedy if goes_round(row[1].split())][:EACH],
        "loop: large models'": [row for row in real if goes_round(row[1].split())][:EACH],
    }


def goes_round(words: Sequence[str]) -> bool:
    """Whether the last words are one run six times over and more than a line, by trying every length."""
    return any(
        list(words[-6 * p :]) == list(words[-p:]) * 6 and len(" ".join(words[-6 * p :])) > 60
        for p in range(1, len(words) // 6 + 1)
    )


def cut_silently(pool: Sequence[Answer], noise: random.Random) -> Kinds:
    """Answers cut anywhere, and nobody says so: what can be told from the text alone."""
    kinds: Kinds = {"in a word": [], "between words of a sentence": [], "after a sentence": []}
    for prompt, text, _ in noise.sample(list(pool), min(20 * EACH, len(pool))):
        at = noise.randrange(len(text) // 2, len(text))
        if text[at - 1 : at + 1].isalpha():
            kinds["in a word"].append((prompt, text[:at], None))
        elif text[at].isspace() and text[at - 1].isalpha() and "\n" not in text[at]:
            kinds["between words of a sentence"].append((prompt, text[:at], None))
        if found := [match.end() for match in re.finditer(r"[.!?](?=\s)", text)]:
            kinds["after a sentence"].append((prompt, text[: noise.choice(found)], None))
    return {name: rows[: 5 * EACH] for name, rows in kinds.items()}


# --- The page


def flags_of(answer: Answer) -> tuple[Flag, ...]:
    prompt, text, finish = answer
    return check(prompt, text, finish=finish)


def line(name: str, rows: Sequence[Answer], wanted: str | None = None) -> list[str]:
    """How many are flagged, with the interval, and by reason."""
    flags = [flags_of(row) for row in rows]
    hits, reasons = sum(map(bool, flags)), Counter(r for each in flags for r in {flag.reason for flag in each})
    found = wilson(hits, len(rows)).named("x")
    named = [f"{100 * reasons[wanted] / len(rows):.0f} %"] if wanted else []
    return [name, f"{len(rows):,}", f"{hits:,}", common.interval(found, "x"), *named, listed(reasons)]


def listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {reasons[reason]}" for reason in REASONS if reasons[reason]) or "–"


def page(facts: dict[str, Any], good: Kinds, broken: Kinds, undecided: Kinds, real: Kinds) -> str:
    whole = [row for rows in good.values() for row in rows]
    bad = [row for rows in broken.values() for row in rows]
    missed, flagged = (
        sum(bool(flags_of(row)) is wrong for row in rows) for rows, wrong in ((bad, False), (whole, True))
    )
    caught = wilson(len(bad) - missed, len(bad)).named("x")
    alarms = wilson(flagged, len(whole)).named("x")
    left = sum(bool(check(row[0], answered(row), finish="stop")) for row in [*bad, *whole])
    took = sorted(timed(whole))
    middle, size = statistics.median(took), statistics.median(len(text) for _, text, _ in whole)
    slow = took[len(took) * 99 // 100]
    counted = ["responses", "flagged"]
    tables = {
        "broken": (["kind", *counted, "caught", "for that reason", "reasons"], broken, True),
        "good": (["source", *counted, "false alarms", "reasons"], good, False),
        "undecided": (["cut", *counted, "caught", "reasons"], undecided, False),
        "real": (["source", *counted, "share", "reasons"], real, False),
    }
    shown = {
        part: common.table(
            header, [line(name, rows, name.split(":")[0] if named else None) for name, rows in of.items()]
        )
        for part, (header, of, named) in tables.items()
    }
    return f"""# The guard, measured

{common.origin_text(facts)}
Rows of public data sets, halved by a hash of the prompt. The tables of ordinary text were counted on the first half;
all rates are of the second. The rules and their thresholds were written while reading flagged answers of both
halves: the rates are of texts that were not counted, but not all of texts that nobody had seen.

- **Caught**: {common.interval(caught, "x")} of {len(bad):,} broken responses.
- **False alarms**: {common.interval(alarms, "x")} of {len(whole):,} good ones. No row was left out, those included that
  turn out to be broken when they are read.
- **With the fallback on**, {left} of {len(bad) + len(whole):,} answers leave broken.
- **Processor time**: {middle:.0f} µs for a good response at the median ({size:.0f} characters), {slow:.0f} µs
  at the 99th percentile; {huge():.1f} s for a megabyte.

## Broken responses

{shown["broken"]}
## Good responses

{shown["good"]}
## What cannot be decided: cut, and nobody says so

An answer that ran out of tokens is flagged always, for the sampler knows. Without that knowledge the text is all there
is: one that was cut after a sentence looks whole, and so does one that was cut after a word that may end it.

{shown["undecided"]}
## Real responses that nobody has labelled

Many of HH-RLHF's answers were cut when they were sampled. What is flagged here measures the data more than
the guard.

{shown["real"]}"""


def answered(row: Answer) -> str:
    """What leaves with the fallback on and nothing drawn again."""
    return safe(row[0]).response if flags_of(row) else row[1]


def timed(rows: Sequence[Answer]) -> Iterator[float]:
    """Microseconds of each check, of the processor's time."""
    for row in rows:
        began = time.process_time()
        flags_of(row)
        yield 1e6 * (time.process_time() - began)


def huge() -> float:
    """Seconds of the processor for a megabyte of ordinary words."""
    began = time.process_time()
    check(Prompt.ask("Go on."), " ".join(f"word{n} and" for n in range(85_000)))
    return time.process_time() - began


if __name__ == "__main__":
    main()
