"""The row formats: what each looks like, and which reader takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from assay.data import readers
from assay.data.readers import Reader

Kind = Literal["text", "dialogue", "turns", "list", "any"]
Gives = Literal["preferences", "rankings", "steps", "verdicts", "demonstrations", "prompts", "text"]


@dataclass(frozen=True)
class Format:
    """A way to write rows down.

    `needs` maps each column it must have to the kinds of value it may hold there ("dialogue" is text in
    `Human:/Assistant:` form and counts as text too); `lacks` are columns that point to another format.
    """

    name: str
    gives: Gives
    about: str
    needs: Mapping[str, tuple[Kind, ...]]
    read: Reader
    lacks: tuple[str, ...] = ()

    @property
    def columns(self) -> str:
        """The columns and what they hold, for people: `"prompt" (text or turns), "label" (any)`."""
        return ", ".join(f'"{column}" ({" or ".join(kinds)})' for column, kinds in self.needs.items())

    def fits(self, kinds: Mapping[str, set[Kind]], *, hollow: bool = False) -> bool:
        """Whether the columns (name → kinds of value seen) have what this format needs; `hollow`: or hold nothing."""
        needed = (
            column in kinds and (_allowed(kinds[column], wanted) or (hollow and not kinds[column]))
            for column, wanted in self.needs.items()
        )
        return all(needed) and not any(column in kinds for column in self.lacks)

    def filled(self, kinds: Mapping[str, set[Kind]]) -> int:
        """How many of the columns that it needs hold something."""
        return sum(bool(kinds.get(column)) for column in self.needs)


def _allowed(seen: set[Kind], wanted: Sequence[Kind]) -> bool:
    """Whether a column may hold what was seen: most kinds are exact, but a dialogue is also text."""
    accepted = {*wanted, "dialogue"} if "text" in wanted else set(wanted)
    return "any" in wanted or bool(seen & accepted)


T: tuple[Kind, ...] = ("text",)
TC: tuple[Kind, ...] = ("text", "turns")
ANY: tuple[Kind, ...] = ("any",)

FORMATS: tuple[Format, ...] = (  # the most particular first: the first that fits is taken
    Format(
        "hh",
        "preferences",
        "HH-RLHF: two whole Human/Assistant dialogues; the prompt is their common turn prefix",
        {"chosen": ("dialogue",), "rejected": ("dialogue",)},
        readers.dialogue_pair("chosen", "rejected"),
        lacks=("prompt",),
    ),
    Format(
        "hhh",
        "preferences",
        "HHH evaluations: two whole dialogues, the right and the wrong one",
        {"text_correct": ("dialogue",), "text_incorrect": ("dialogue",)},
        readers.dialogue_pair("text_correct", "text_incorrect"),
    ),
    Format(
        "rm-static",
        "preferences",
        "rm-static: a Human/Assistant prompt, two replies, and the chosen one again as response",
        {"prompt": ("dialogue",), "response": T, "chosen": T, "rejected": T},
        readers.prompt_pair,
    ),
    Format(
        "alpaca-pairs",
        "preferences",
        "Alpaca's instruction and input with two replies",
        {"instruction": T, "chosen": T, "rejected": T},
        readers.instruction_pair,
    ),
    Format(
        "sharegpt-pairs",
        "preferences",
        "ShareGPT turns with two replies",
        {"conversations": ("turns",), "chosen": TC, "rejected": TC},
        readers.sharegpt_pair,
    ),
    Format(
        "trl-pairs",
        "preferences",
        "TRL: prompt, chosen, rejected, as text or as chat turns",
        {"prompt": TC, "chosen": TC, "rejected": TC},
        readers.prompt_pair,
    ),
    Format(
        "chat-pairs",
        "preferences",
        "TRL with implicit prompt: two whole dialogues as chat turns",
        {"chosen": ("turns",), "rejected": ("turns",)},
        readers.dialogue_pair("chosen", "rejected"),
        lacks=("prompt",),
    ),
    Format(
        "annotated-pairs",
        "preferences",
        "PandaLM: two replies and the votes of several annotators; the majority decides",
        {"instruction": T, "response1": T, "response2": T, "annotator1": ANY},
        readers.annotated_pair,
    ),
    Format(
        "qa-feedback",
        "preferences",
        "QA-Feedback: four predictions and a verdict on each pair of them",
        {"question": T, "prediction 1": T, "prediction 2": T, "preference": ("list",)},
        readers.compared_predictions,
    ),
    Format(
        "judged-summaries",
        "preferences",
        "TL;DR: a policy's summary against a person's, and a judge's verdict",
        {"query": T, "postprocessed_response": T, "reference_responses": T, "preferred": T},
        readers.judged_summary,
    ),
    Format(
        "options",
        "preferences",
        "A prompt with right and wrong answers",
        {"prompt": T, "corrects": ("list",), "incorrects": ("list",)},
        readers.options,
    ),
    Format(
        "ranking",
        "rankings",
        "K responses to a prompt, best first, or with ranks (1 is best) or scores",
        {"prompt": TC, "responses": ("list", "text", "turns")},
        readers.ranking,
    ),
    Format(
        "steps",
        "steps",
        "process supervision: a reply in steps (completions), and for each whether it is good (labels)",
        {"prompt": TC, "completions": ("list", "text"), "labels": ("list",)},
        readers.judged_steps,
    ),
    Format(
        "kto-messages",
        "verdicts",
        "KTO on a whole dialogue: its last reply is good or bad",
        {"messages": ("turns",), "label": ANY},
        readers.messages_verdict,
    ),
    Format(
        "kto",
        "verdicts",
        "KTO: prompt, completion, and whether it is good",
        {"prompt": TC, "completion": TC, "label": ANY},
        readers.verdict,
    ),
    Format(
        "trl-completion",
        "demonstrations",
        "TRL: prompt and completion, as text or as chat turns",
        {"prompt": TC, "completion": TC},
        readers.completion,
    ),
    Format("messages", "demonstrations", "OpenAI messages", {"messages": ("turns",)}, readers.conversation),
    Format("sharegpt", "demonstrations", "ShareGPT conversations", {"conversations": ("turns",)}, readers.conversation),
    Format(
        "self-instruct",
        "demonstrations",
        "Self-Instruct seed tasks: an instruction with several instances",
        {"instruction": T, "instances": ("list", "turns")},
        readers.instances,
    ),
    Format(
        "dolly",
        "demonstrations",
        "Dolly: instruction, context, response, category",
        {"instruction": T, "context": ANY, "response": T},
        readers.instruction("response"),
    ),
    Format(
        "alpaca",
        "demonstrations",
        "Alpaca: instruction, maybe input and history, output",
        {"instruction": T, "output": T},
        readers.instruction("output"),
    ),
    Format(
        "alpaca-response",
        "demonstrations",
        "Alpaca with the answer named response (GPTeacher)",
        {"instruction": T, "response": T},
        readers.instruction("response"),
    ),
    Format(
        "question-answer",
        "demonstrations",
        "A question and its answer (GSM8K)",
        {"question": T, "answer": T},
        readers.question_answer,
    ),
    Format("prompts", "prompts", "Only prompts, as text or as chat turns", {"prompt": TC}, readers.prompt("prompt")),
    Format("instructions", "prompts", "Only instructions", {"instruction": T}, readers.prompt("instruction")),
    Format(
        "instruction-list",
        "prompts",
        "Only instructions, in a column of that name",
        {"instructions": T},
        readers.prompt("instructions"),
    ),
    Format("text", "text", "Raw documents", {"text": T}, readers.text),
    Format(
        "text-prompts",
        "prompts",
        "Raw texts as prompts; never recognised, only when asked for",
        {"text": T},
        readers.prompt("text"),
    ),
)
BY_NAME = {format.name: format for format in FORMATS}
