"""A response as steps, for judging it step by step."""

from __future__ import annotations

import re

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def split_steps(text: str) -> list[str]:
    """Its lines, where it has several; else its sentences. Nothing for an empty text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines if len(lines) != 1 else SENTENCE_END.split(lines[0])
