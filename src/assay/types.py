"""The words of the project: what people say, ask, demonstrate and prefer. Plain text, no tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A dialogue that waits for the assistant's next turn.

    `source` names the data set it comes from; `kind` the category, where one is known.
    """

    messages: tuple[Message, ...]
    source: str = ""
    kind: str = ""

    @classmethod
    def ask(cls, text: str, *, source: str = "", kind: str = "") -> Prompt:
        """A prompt of one user turn."""
        return cls((Message("user", text),), source, kind)

    @property
    def id(self) -> str:
        """16 hex digits of the dialogue's content: splits and lookups go by it."""
        digest = hashlib.blake2b(digest_size=8)
        for message in self.messages:
            digest.update(f"{message.role}\x1f{message.content}\x1e".encode())
        return digest.hexdigest()

    @property
    def text(self) -> str:
        """The last turn, which is what a single-turn reader wants to see."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and a response to imitate (supervised fine-tuning)."""

    prompt: Prompt
    response: str


@dataclass(frozen=True, slots=True)
class Preference:
    """Two responses to one prompt, the first preferred.

    `margin` says by how much, where a person said so; `objective` what was asked about, where it was one thing only.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None
    objective: str = ""


@dataclass(frozen=True, slots=True)
class Ranking:
    """K responses to one prompt, best first (InstructGPT, arXiv 2203.02155, sec. 3.5)."""

    prompt: Prompt
    responses: tuple[str, ...]
    objective: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One response judged good or bad on its own (KTO, arXiv 2402.01306)."""

    prompt: Prompt
    response: str
    good: bool


@dataclass(frozen=True, slots=True)
class JudgedSteps:
    """A response in steps, each judged good or bad (process supervision, Lightman et al. 2023, arXiv 2305.20050)."""

    prompt: Prompt
    steps: tuple[str, ...]
    good: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """What a policy answered. `finish` is "length" when it ran out of tokens before it ended.

    `cut`: it was not shown all of the prompt, which was too long. `leak`: a special token before its end, which the
    text does not show.
    """

    prompt: Prompt
    response: str
    finish: FinishReason
    tokens: int
    cut: bool = False
    leak: str = ""
