"""One function per way of writing a row down. Each gives the items of a row, or raises `Unfit` with the reason."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from assay.data import dialogue
from assay.data.dialogue import Unfit, optional_text, text_of
from assay.data.records import Item
from assay.types import Demonstration, JudgedSteps, Message, Preference, Prompt, Ranking, Verdict

Row = Mapping[str, Any]
Reader = Callable[[Row], Sequence[Item]]


def dialogue_pair(chosen: str, rejected: str) -> Reader:
    """Two whole dialogues (text or turns): the prompt is their common turn prefix."""

    def read(row: Row) -> list[Item]:
        good, bad = (_turns(row, column) for column in (chosen, rejected))
        if good == bad:
            raise Unfit("chosen and rejected are the same dialogue")
        return [Preference(*dialogue.common_prompt(good, bad), _margin(row))]

    return read


def prompt_pair(row: Row) -> list[Item]:
    """A prompt (text, `Human:` dialogue or turns) with two replies to it."""
    good, bad = (dialogue.reply_of(row.get(column), column) for column in ("chosen", "rejected"))
    return [Preference(_prompt(row, "prompt"), good, bad, _margin(row))]


def sharegpt_pair(row: Row) -> list[Item]:
    """ShareGPT turns with two replies."""
    good, bad = (dialogue.reply_of(row.get(column), column) for column in ("chosen", "rejected"))
    return [Preference(_conversation(row, dialogue.waiting), good, bad, _margin(row))]


def instruction_pair(row: Row) -> list[Item]:
    """Alpaca's instruction and input with two replies."""
    return [Preference(_instruction(row), text_of(row, "chosen"), text_of(row, "rejected"), _margin(row))]


def annotated_pair(row: Row) -> list[Item]:
    """PandaLM: two replies and several annotators (0 tie, 1 or 2 better); a majority decides."""
    votes = Counter(str(vote) for column, vote in row.items() if column.startswith("annotator"))
    (winner, count), total = votes.most_common(1)[0], votes.total()
    if winner not in ("1", "2"):
        raise Unfit("the annotators call it a tie")
    if 2 * count <= total:
        raise Unfit("the annotators have no majority")
    replies = [text_of(row, "response1"), text_of(row, "response2")]
    good, bad = replies if winner == "1" else replies[::-1]
    return [Preference(_instruction(row), good, bad)]


def compared_predictions(row: Row) -> Sequence[Item]:
    """QA-Feedback: K predictions and a verdict on each pair of them (0 none, 1 first, 2 second better)."""
    passages = "\n\n".join(" ".join([f"{title}:", *sentences]) for title, *sentences in row.get("passages") or [])
    question = text_of(row, "question")
    prompt = Prompt.ask(f"{passages}\n\n{question}" if passages else question)
    replies = [text_of(row, f"prediction {k}") for k in range(1, 5)]
    pairs = list(itertools.combinations(replies, 2))
    verdicts = row.get("preference") or []
    if len(verdicts) != len(pairs):
        raise Unfit(f"not {len(pairs)} verdicts")
    found = [
        Preference(prompt, first, second) if verdict == 1 else Preference(prompt, second, first)
        for (first, second), verdict in zip(pairs, verdicts, strict=True)
        if verdict in (1, 2) and first != second
    ]
    return found or _nothing("no verdict prefers one of two different predictions")


def judged_summary(row: Row) -> list[Item]:
    """A summary by a policy against a person's, and which of the two a judge preferred."""
    ours, reference = text_of(row, "postprocessed_response"), text_of(row, "reference_responses")
    verdict = optional_text(row, "preferred")
    if verdict not in ("ours", "reference"):
        raise Unfit("no verdict")
    good, bad = (ours, reference) if verdict == "ours" else (reference, ours)
    return [Preference(_prompt(row, "query"), good, bad)]


def options(row: Row) -> list[Item]:
    """A prompt with right and wrong answers: every right one is preferred to every wrong one."""
    prompt = _prompt(row, "prompt")
    pairs = itertools.product(_texts(row, "corrects"), _texts(row, "incorrects"))
    return [Preference(prompt, good, bad) for good, bad in pairs]


def ranking(row: Row) -> Sequence[Item]:
    """K replies, best first, or with `ranks` (1 is best) or `scores`; ties give the pairs that are decided."""
    prompt, replies = _prompt(row, "prompt"), _texts(row, "responses")
    places = row.get("ranks") or [-score for score in row.get("scores") or []] or list(range(len(replies)))
    if len(places) != len(replies):
        raise Unfit("not one rank or score for each response")
    if len(replies) < 2:
        raise Unfit("fewer than two responses")
    order = sorted(range(len(replies)), key=places.__getitem__)
    if len(set(places)) == len(places):
        return [Ranking(prompt, tuple(replies[i] for i in order))]
    decided = [(a, b) for a, b in itertools.combinations(order, 2) if places[a] < places[b]]
    return [Preference(prompt, replies[a], replies[b]) for a, b in decided] or _nothing("all responses tie")


def verdict(row: Row) -> list[Item]:
    """KTO: one reply, good or bad."""
    return [Verdict(_prompt(row, "prompt"), dialogue.reply_of(row.get("completion"), "completion"), _label(row))]


def messages_verdict(row: Row) -> list[Item]:
    """KTO on a whole dialogue: the last reply is good or bad."""
    prompt, reply = _conversation(row, dialogue.split_last)
    return [Verdict(prompt, reply, _label(row))]


def judged_steps(row: Row) -> list[Item]:
    """A reply in steps with a label for each."""
    steps, labels = _texts(row, "completions"), row.get("labels") or []
    if len(labels) != len(steps):
        raise Unfit("not one label for each step")
    return [JudgedSteps(_prompt(row, "prompt"), tuple(steps), tuple(_truth(label, "labels") for label in labels))]


def conversation(row: Row) -> list[Item]:
    """A whole dialogue (OpenAI messages or ShareGPT): its last reply is the demonstration."""
    return [Demonstration(*_conversation(row, dialogue.split_last))]


def completion(row: Row) -> list[Item]:
    """TRL's prompt and completion."""
    return [Demonstration(_prompt(row, "prompt"), dialogue.reply_of(row.get("completion"), "completion"))]


def instruction(answer: str) -> Reader:
    """Alpaca and its relatives: instruction, maybe input or context, maybe history, and an answer."""
    return lambda row: [Demonstration(_instruction(row), text_of(row, answer))]


def instances(row: Row) -> list[Item]:
    """Self-Instruct seed tasks: one instruction, several inputs with their outputs."""
    shared = text_of(row, "instruction")
    cases = row["instances"] or _nothing("no instances")
    return [Demonstration(_instruction({**case, "instruction": shared}), text_of(case, "output")) for case in cases]


def question_answer(row: Row) -> list[Item]:
    """A question and its answer."""
    return [Demonstration(_prompt(row, "question"), text_of(row, "answer"))]


def prompt(column: str) -> Reader:
    """Only something to ask."""
    return lambda row: [_instruction(row) if column == "instruction" else _prompt(row, column)]


def text(row: Row) -> list[Item]:
    """A raw document."""
    return [text_of(row, "text")]


def _prompt(row: Row, column: str) -> Prompt:
    value = row.get(column)
    return dialogue.prompt_of(text_of(row, column) if isinstance(value, str) or dialogue.is_missing(value) else value)


def _turns(row: Row, column: str) -> tuple[Message, ...]:
    value = row.get(column)
    if isinstance(value, str) or dialogue.is_missing(value):
        return dialogue.parse_dialogue(text_of(row, column))
    return dialogue.parse_messages(value)


def _conversation(row: Row, split: Callable[[tuple[Message, ...]], Any]) -> Any:
    column = "messages" if "messages" in row else "conversations"
    turns = dialogue.parse_messages(row.get(column))
    system = optional_text(row, "system")
    return split((Message("system", system), *turns) if system and turns[0].role != "system" else turns)


def _instruction(row: Row) -> Prompt:
    """The instruction, a blank line, then the input or context; earlier exchanges come from `history`."""
    asked = text_of(row, "instruction")
    more = next((found for column in ("input", "context") if (found := optional_text(row, column))), "")
    past = [
        Message(role, said.strip())
        for exchange in row.get("history") or []
        for role, said in zip(("user", "assistant"), exchange, strict=True)
    ]
    return dialogue.waiting(dialogue.merge([*past, Message("user", f"{asked}\n\n{more}" if more else asked)]))


def _texts(row: Row, column: str) -> list[str]:
    value = row.get(column)
    if isinstance(value, str):  # a table holds a list as JSON text
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise Unfit(f'"{column}" is not a list') from None
    if not isinstance(value, Sequence) or not value:
        raise Unfit(f'"{column}" is not a list of responses')
    return [dialogue.reply_of(reply, column) for reply in value]


def _margin(row: Row) -> float | None:
    value = row.get("margin")
    return None if dialogue.is_missing(value) or value == "" else float(value)  # type: ignore[arg-type]


def _label(row: Row) -> bool:
    return _truth(row.get("label"), "label")


def _truth(value: object, column: str) -> bool:
    word = str(value).strip().lower()
    if word in ("true", "1", "1.0"):
        return True
    if word in ("false", "0", "0.0", "-1"):
        return False
    raise Unfit(f'"{column}" is neither true nor false')


def _nothing(reason: str) -> Any:
    raise Unfit(reason)
