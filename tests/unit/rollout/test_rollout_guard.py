# ruff: noqa: RUF001  (answers in other scripts look like Latin letters)
"""The guard: what is broken and what is not, and what is done about it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from assay.data.render import Renderer
from assay.errors import ConfigError
from assay.models.load import load_tokenizer
from assay.models.locate import locate
from assay.rollout import collect, guard
from assay.rollout.broken import Reason, check, cycle
from assay.rollout.config import SAFE, GuardConfig, SamplingParams
from assay.rollout.sampler import Generation
from assay.stages.config import GroupConfig, PPOConfig
from assay.statistics import wilson
from assay.types import FinishReason, Message, Prompt

ASKED = Prompt.ask("How do I keep my bread fresh for a few days?")
PROSE = (
    "Bread stays fresh the longest in a closed box or a paper bag. Keep it away from the fridge, where it goes stale "
    "sooner than on the shelf. If you want to keep it for more than three days, slice it and put it in the freezer. "
    "You can then toast the slices whenever you need them, and they will taste almost as good as new."
)

GOOD = {
    "short": ("Is water wet?", "Yes."),
    "a number": ("What is 6 times 7?", "42"),
    "a letter": ("Which option is right, A or B?", "B"),
    "an emoji": ("How was it?", "👍"),
    "brackets": ("Write an empty list in Python.", "[]"),
    "prose": (ASKED.text, PROSE),
    "no mark at the end": ("What is the capital of France?", "Paris, on the Seine"),
    "list": ("Name three fruits.", "1. Apples\n2. Pears\n3. Plums"),
    "bullets with one beginning": (
        "What may I bring?",
        "- You can bring a coat\n- You can bring a hat\n- You can bring a scarf\n- You can bring a bag",
    ),
    "code": ("Write a loop.", "```python\nfor i in range(10):\n    print(i)\n```"),
    "code without a fence": ("Write a function.", "def add(a, b):\n    return a + b\n\nprint(add(1, 2))"),
    "table": ("A table of squares, please.", "| n | n² |\n|---|---|\n| 1 | 1 |\n| 2 | 4 |\n| 3 | 9 |\n| 4 | 16 |"),
    "times table": ("The table of 7?", "\n".join(f"7 x {n} = {7 * n}" for n in range(1, 11))),
    "rule": ("Draw a line.", "-" * 80 + "x"),
    "zeros": ("A zero matrix, please.", "\n".join(["0 0 0 0"] * 4)),
    "refrain": (
        "Write a song about rain.",
        "Rain on the roof and rain on the road,\nlet it rain, let it rain.\nA cart in the mud with a heavy load,\n"
        "let it rain, let it rain.\nThe hens are wet and the dog is too,\nlet it rain, let it rain.\n"
        "The sky was grey and now it is blue,\nno more rain, no more rain.",
    ),
    "laughter": ("Tell me a joke.", "Ha ha ha ha, that is a good one!"),
    "emphasis": ("Is it far?", "It is very, very, very, very far from here."),
    "quotation": (
        "Who said that all the world's a stage?",
        '"All the world\'s a stage" is from As You Like It, by Shakespeare.',
    ),
    "restated": ("What is the capital of the state of Ohio?", "The capital of the state of Ohio is Columbus."),
    "extracted": ("Anna went to the market in Leeds to sell her eggs. Where did Anna go?", "to the market in Leeds"),
    "corrected": (
        "Correct the mistakes: He go to the school every day and he like it very much there.",
        "He goes to the school every day and he likes it very much there.",
    ),
    "translation": ("Translate 'thank you' into Russian.", "спасибо"),
    "longer translation": (
        "Translate into German: it is cold, and the cat is on the roof.",
        "Es ist kalt, und die Katze ist auf dem Dach.",
    ),
    "names in other scripts": ("Where is Tokyo?", "Tokyo (東京) is the capital of Japan (日本)."),
    "German to German": ("Wie ist das Wetter heute, und wird es kalt?", "Es ist kalt, und es wird auch nicht wärmer."),
    "Polish to Polish": ("Gdzie jest kot? Czy się nie boi?", "Kot siedzi na dachu i przygląda się ptakom w ogrodzie."),
    "Chinese to Chinese": ("今天天气怎么样？", "今天天气很好，适合出去散步，也可以去公园看看花。"),
    "dialogue": ("Write a dialogue between a user and an assistant.", "User: Hello!\nAssistant: Hello. How are you?"),
    "asked for a token": ("What does <|im_end|> mean?", "The token <|im_end|> ends a turn."),
    "address": ("Where do I find it?", "It is at https://example.org/a1b2/c3d4?x=9&y=Zz"),
    "chess": ("The opening position in FEN?", "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1"),
    "accents": ("What is a good pastry?", "A crème brûlée, or a mille-feuille with café au lait."),
    "tweet": ("A tweet on tea.", "Nothing beats a cup of tea. It is warm. Try some today! #tea #morning #calm"),
    "a word as often as asked": ("Repeat the word cat ten times.", " ".join(["cat"] * 10)),
    "a sentence as often as asked": (
        "Repeat the phrase 'I will not talk in class' 10 times.",
        "I will not talk in class. " * 10,
    ),
    "a chorus": (
        "Write the chorus of a song.",
        "Let it be, let it be, let it be, let it be\nWhisper words of wisdom, let it be\n" * 3,
    ),
    "a word explained": ("What is AI?", "AI: Artificial intelligence is the study of machines."),
    "words explained": (
        "What are the roles?",
        "User: an entity that logs in to the system.\nAdmin: an entity that manages it.",
    ),
    "DNA": ("Give me a DNA sequence.", "ATGCGTACGTTAGCATGCGTACGTTAGCATGCGTACGTTAGC"),
    "a question said again": ("What's the capital of France?", "What's the capital of France? Paris."),
    "letter": ("Write a short letter.", "Dear Ann,\n\nThank you for the book. I liked it a lot.\n\nYours,\nBen"),
}

BROKEN: dict[str, tuple[str, str, Reason]] = {
    "nothing": ("Hello?", "", "empty"),
    "white space": ("Hello?", " \n\t ", "empty"),
    "zero width": ("Hello?", "\u200b\ufeff\u200b", "empty"),
    "dots": ("Hello?", "......", "empty"),
    "a letter again": ("Hello?", "a" * 100, "loop"),
    "a syllable again": ("Hello?", "lo" * 60, "loop"),
    "a word again": ("Hello?", "yes " * 30, "loop"),
    "a phrase again": ("Hello?", "I see it. " + "and then I said " * 12, "loop"),
    "another word than asked": ("Repeat the word cat ten times.", "dog " * 30, "loop"),
    "a word much more often than asked": ("Repeat the word cat 10 times.", "cat " * 200, "loop"),
    "a chorus without end": ("Write the chorus of a song.", "Let it be, let it be tonight\n" * 12, "loop"),
    "a sentence again": ("Hello?", PROSE + " I can help you with that." * 8, "loop"),
    "numbered lines again": ("Hello?", "\n".join(f"{n}. Drink some more water" for n in range(1, 9)), "loop"),
    "without spaces": ("你好吗？", "我很好谢谢" * 20, "loop"),
    "letters": (ASKED.text, "xkqz vbwpq jfhgq zxplm wvbnc qqrtz hjkxv bnmzq", "gibberish"),
    "keys": (ASKED.text, "asdfgh jkl qwer zxcv bnm sdfjkl asdf wertuio xcvbn asdlkj", "gibberish"),
    "backwards": (ASKED.text, PROSE[::-1], "gibberish"),
    "words shuffled": (ASKED.text, " ".join(random.Random(3).sample(PROSE.split(), len(PROSE.split()))), "gibberish"),
    "control character": (ASKED.text, "Put it in \x07 a box.", "gibberish"),
    "replacement character": (ASKED.text, "Put it in a b\ufffdx.", "gibberish"),
    "wrong encoding": (ASKED.text, "It’s in the café.".encode().decode("latin-1"), "gibberish"),
    "many scripts": (ASKED.text, "жλאء가あ漢ไ" * 8, "gibberish"),
    "echo": (ASKED.text, ASKED.text, "echo"),
    "echo in other letters": (ASKED.text, ASKED.text.upper().replace("?", ""), "echo"),
    "echo and answer": (ASKED.text, f"{ASKED.text} In a box, of course.", "echo"),
    "special token": (ASKED.text, "In a box.<|im_end|>", "leak"),
    "end of text": (ASKED.text, "In a box.</s> And then", "leak"),
    "next turn": (ASKED.text, "In a box.\n\nHuman: And cake?", "leak"),
    "next turn of a user": (ASKED.text, "In a box.\n\nUser: And cake?", "leak"),
    "next heading": (ASKED.text, "In a box.\n### Assistant: In a bag.", "leak"),
    "Russian": (ASKED.text, "Хлеб лучше всего хранить в закрытой коробке.", "language"),
    "German": (
        ASKED.text,
        "Das Brot ist in einem Kasten gut aufgehoben, und es wird auch nicht so schnell hart, wenn man es mit einem "
        "Tuch bedeckt und nicht in den Kühlschrank legt.",
        "language",
    ),
    "German with few small words": (
        "Tell me of Goethe.",
        "Johann Wolfgang von Goethe war ein deutscher Dichter und Naturforscher. Er gilt als einer der bedeutendsten "
        "Schöpfer deutschsprachiger Dichtung.",
        "language",
    ),
    "English to German": (
        "Erzähl mir etwas über Hunde und Katzen, bitte",
        "Dogs and cats are animals that people keep at home, and they are often friends with each other.",
        "language",
    ),
    "dangling": (ASKED.text, "Bread stays fresh the longest in the", "truncated"),
    "comma": (ASKED.text, "You can keep it in a box,", "truncated"),
    "open code": ("Write a loop.", "Here it is:\n```python\nfor i in range(10):", "truncated"),
    "without its mark": (ASKED.text, PROSE[: PROSE.index("three") + 5], "truncated"),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_whole_has_no_flag(name: str) -> None:
    prompt, text = GOOD[name]
    assert check(Prompt.ask(prompt), text, finish="stop") == ()


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_flagged_for_its_reason(name: str) -> None:
    prompt, text, reason = BROKEN[name]
    flags = check(Prompt.ask(prompt), text, finish="stop")
    assert reason in {flag.reason for flag in flags}
    assert all(flag.says for flag in flags)


def test_the_sampler_knows_that_an_answer_was_cut_where_the_text_does_not() -> None:
    whole = "Put it in a box."
    finishes: tuple[FinishReason | None, ...] = (None, "stop", "length")
    found = [check(ASKED, whole, finish=finish) for finish in finishes]
    assert [[flag.reason for flag in flags] for flags in found] == [[], [], ["truncated"]]


def test_a_flag_says_where() -> None:
    (leak,) = check(ASKED, "In a box.<|im_end|>")
    assert leak.says == "special token '<|im_end|>' at character 10 of 19"
    (loop,) = check(ASKED, "Well, in a box. " + "and in a bag " * 10 + "of course.")
    assert loop.says == "'and in a bag' 10 times in a row, from word 5 of 46"


def answered(said: str, stop: tuple[str, ...] = ()) -> Generation:
    """What the engine makes of a text that the embedded model has drawn, token by token."""
    tokenizer = load_tokenizer(locate("embedded"))
    renderer = Renderer(tokenizer, max_length=64)
    ids = tokenizer(said, add_special_tokens=False).input_ids
    text, leak = renderer.text(ids), renderer.leak(ids, stop)
    return Generation(ASKED, [1], ids, [0.0] * len(ids), text, "stop", leak=leak)


END = "<|end|>"


@pytest.mark.parametrize(
    ("said", "stop", "leak"),
    [
        (f"In a box.{END}", (), ""),
        ("In a box.", (), ""),
        (f"In a box. <|user|> And now?{END}", (), "<|user|>"),
        (f"<|assistant|>In a box.{END}", (), "<|assistant|>"),
        (f"In a box.{END}<|user|>", (), ""),  # nobody reads what comes after the end
        ("In a box. <|user|> And", ("<|user|> And",), ""),  # nor a string that was asked to end it
    ],
)
def test_a_special_token_is_a_leak_anywhere_but_at_the_end(said: str, stop: tuple[str, ...], leak: str) -> None:
    generation = answered(said, stop)
    assert generation.leak == leak
    rollouts = collect.Rollouts.of([generation], [0.0])
    for completion in (generation.completion, *rollouts.completions, *collect.joined([rollouts]).take([0]).completions):
        flags = guard.inspect(completion)
        assert [flag.reason for flag in flags] == ["leak"] * bool(leak)
        assert all(leak in flag.says for flag in flags)


def test_a_special_token_that_the_prompt_is_about_is_no_leak() -> None:
    assert check(Prompt.ask("What does <|user|> stand for?"), "It begins a turn.", leak="<|user|>") == ()


def test_an_earlier_answer_of_the_dialogue_is_an_echo() -> None:
    said = "Keep it in a closed box, and away from the fridge."
    again = Prompt((*ASKED.messages, Message("assistant", said), Message("user", "And what about cake?")))
    assert [flag.reason for flag in check(again, said)] == ["echo"]
    assert check(ASKED, said) == ()


def test_what_is_no_text_is_empty() -> None:
    assert [flag.reason for flag in check(ASKED, None)] == ["empty"]
    assert [flag.reason for flag in check(None, "")] == ["empty"]


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_can_be_checked(asked: str, text: str) -> None:
    flags = check(Prompt.ask(asked), text)
    assert len({flag.reason for flag in flags}) == len(flags) or sum(flag.reason == "leak" for flag in flags) == 2


@given(st.lists(st.sampled_from("ab"), max_size=16), st.integers(1, 3))
def test_a_cycle_is_what_trying_every_stretch_finds(items: list[str], n: int) -> None:
    """For runs longer than half the period no earlier run within a period is taken for the same: p ≤ n."""
    start, period, length = cycle(items, n, 3)
    if period:
        stretch = items[start : start + length]
        assert length >= 3 * period
        assert all(stretch[i] == stretch[i + period] for i in range(length - period))
    for p in range(1, n + 1):
        for first in range(len(items)):
            for size in range(max(3 * p, p + n), len(items) - first + 1):
                stretch = items[first : first + size]
                if all(stretch[i] == stretch[i + p] for i in range(size - p)):
                    assert length >= size or _smaller(stretch, p)


def _smaller(stretch: Sequence[str], p: int) -> bool:
    """Whether a stretch has a smaller period, under which it is found."""
    return any(all(stretch[i] == stretch[i + q] for i in range(len(stretch) - q)) for q in range(1, p))


@pytest.mark.parametrize(
    "unit", ["a", "ab ", "word and ", "\n", "\n1. ", "```", "<|", "Ã", "\x00", "漢", " .", "if (x ", "= ", "'"]
)
def test_a_long_text_takes_time_in_proportion(unit: str) -> None:
    def seconds(size: int) -> float:
        text = (unit * size)[:size]
        began = time.process_time()
        check(ASKED, f"x{text}y")
        return time.process_time() - began

    seconds(1000)
    small, large = min(seconds(10_000) for _ in range(3)), seconds(160_000)
    assert large < 4 * 16 * small + 0.2  # sixteen times the text; a square would take 256 times as long


# --- What is done


@dataclass
class Scripted:
    """Answers each prompt from a list: its first answer, then the next of them each time it is asked again."""

    answers: dict[str, list[str]]
    asked: list[tuple[list[str], SamplingParams, list[int]]] = field(default_factory=list)

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams, *, seeds: Sequence[int]) -> list[Generation]:
        self.asked.append(([prompt.text for prompt in prompts], params, list(seeds)))
        return [Generation(p, [1], [5, 6, 2], [-1.0] * 3, self.answers[p.text].pop(0), "stop") for p in prompts]


PARAMS = SamplingParams(temperature=0.0)
LOOP = "yes " * 40


def run(on_broken: str, attempts: int = 2) -> tuple[guard.Guarded, Scripted]:
    sampler = Scripted({"A?": ["Fine."], "B?": [LOOP, "", "Good."], "C?": [LOOP, LOOP, LOOP]})
    config = GuardConfig.model_validate({"on_broken": on_broken, "attempts": attempts})
    return guard.guarded(sampler, [Prompt.ask(text) for text in ["A?", "B?", "C?"]], PARAMS, config, seed=7), sampler


def test_flag_changes_nothing_and_counts() -> None:
    guarded, sampler = run("flag")
    assert [completion.response for completion in guarded.completions] == ["Fine.", LOOP, LOOP]
    assert len(sampler.asked) == 1
    report = guarded.report()
    assert (report["n"], report["resampled"], report["replaced"]) == (3, 0, 0)
    assert report["before"] == report["after"]
    assert (report["before"]["broken"], report["before"]["loop"], report["before"]["empty"]) == (2, 2, 0)


def test_resample_asks_for_the_broken_ones_alone_with_other_settings() -> None:
    guarded, sampler = run("resample")
    assert [completion.response for completion in guarded.completions] == ["Fine.", "Good.", LOOP]
    assert [prompts for prompts, *_ in sampler.asked] == [["A?", "B?", "C?"], ["B?", "C?"], ["B?", "C?"]]
    assert [params.temperature for _, params, _ in sampler.asked] == [0.0, 0.7, 0.7]
    report = guarded.report()
    assert (report["resampled"], report["replaced"], report["after"]["broken"]) == (4, 0, 1)


def test_an_attempt_has_a_seed_of_its_own_whoever_else_is_broken() -> None:
    _, sampler = run("resample")
    seeds = [dict(zip(prompts, seeds, strict=True)) for prompts, _, seeds in sampler.asked]
    assert len({seed for attempt in seeds for seed in attempt.values()}) == 7
    alone = Scripted({"A?": ["Fine."], "B?": ["Good."], "C?": [LOOP, "Good."]})
    config = GuardConfig(on_broken="resample")
    guard.guarded(alone, [Prompt.ask(text) for text in ("A?", "B?", "C?")], PARAMS, config, seed=7)
    assert alone.asked[1][2] == [seeds[1]["C?"]]


def test_with_the_fallback_nothing_broken_leaves() -> None:
    guarded, _ = run("fallback")
    assert [completion.response for completion in guarded.completions] == ["Fine.", "Good.", SAFE]
    assert guarded.report()["after"]["broken"] == 0
    assert guarded.replaced == 1
    assert not any(guard.inspect(completion) for completion in guarded.completions)


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(max_size=60)), min_size=1, max_size=4)
)
def test_the_safe_text_is_whole_whatever_the_prompt_is(turns: list[tuple[str, str]]) -> None:
    prompt = Prompt(tuple(Message(role, text) for role, text in turns))  # pyright: ignore[reportArgumentType]
    assert check(prompt, SAFE, finish="stop") == ()


@pytest.mark.parametrize(
    "prompt", [SAFE, f"Say: {SAFE}", "Почему трава зелёная, а небо синее?", "こんにちは、元気ですか。"]
)
def test_the_safe_text_answers_prompts_that_it_might_be_mistaken_under(prompt: str) -> None:
    asked = Prompt((Message("user", prompt), Message("assistant", SAFE), Message("user", prompt)))
    assert not guard.inspect(guard.safe(asked))


def test_a_fallback_that_is_broken_itself_is_not_given() -> None:
    mine = "I am sorry, and I cannot say."
    assert guard.safe(ASKED, mine).response == mine
    assert guard.safe(ASKED, LOOP).response == SAFE
    assert guard.safe(Prompt.ask(mine), mine).response == SAFE  # an echo there


def test_shares_by_reason_are_logged() -> None:
    flags = [check(ASKED, text) for text in ("In a box.", LOOP, "")]
    measured = guard.metrics(flags)
    assert measured["guard/broken"] == pytest.approx(2 / 3)
    assert measured["guard/loop"] == measured["guard/empty"] == pytest.approx(1 / 3)
    assert measured["guard/leak"] == 0


@pytest.mark.parametrize("schema", [PPOConfig, GroupConfig])
@pytest.mark.parametrize("on_broken", ["resample", "fallback"])
def test_training_refuses_what_changes_its_distribution(schema: type[PPOConfig], on_broken: str) -> None:
    with pytest.raises((ValidationError, ConfigError), match=f"guard.on_broken: {on_broken} changes which answers"):
        schema.model_validate({"guard": {"on_broken": on_broken}})
    allowed = schema.model_validate({"guard": {}}).guard
    assert allowed is not None
    assert not allowed.changes_answers


# --- Rates, on responses that are made here


def test_rates_hold_on_mutations_of_good_prose() -> None:
    """Every way to break good prose, many times over: the lower end of the interval is above 97 %."""
    noise = random.Random(0)
    words = PROSE.split()

    def loop() -> str:
        start, size = noise.randrange(len(words) - 8), noise.randrange(2, 8)
        return " ".join(words[:20] + words[start : start + size] * noise.randrange(9, 20))

    def letters() -> str:
        return " ".join(
            "".join(noise.choices("abcdefghijklmnopqrstuvwxyz", k=noise.randrange(3, 9))) for _ in range(15)
        )

    def leak() -> str:
        return " ".join([*words[:10], noise.choice(["<|endoftext|>", "</s>", "[/INST]", "<|user|>"]), *words[10:]])

    def shuffled() -> str:
        return " ".join(noise.sample(words, len(words)))

    made = [make() for make in (loop, letters, leak, shuffled) for _ in range(100)]
    caught = sum(bool(check(ASKED, text, finish="stop")) for text in made)
    low = wilson(caught, len(made)).low
    assert low is not None
    assert low > 0.97
