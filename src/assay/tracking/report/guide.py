"""A page of docs/doctor/ as HTML: the few forms of Markdown that those pages use, so that the report needs no network.

Paragraphs, headings, lists, and code, bold and italics within them; a table stays as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from markupsafe import Markup, escape

INLINE = (
    (re.compile(r"`([^`]+)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"<b>\1</b>"),
    (re.compile(r"\*([^*]+)\*"), r"<i>\1</i>"),
    (re.compile(r"!?\[([^\]]+)\]\([^)]+\)"), r"\1"),
)
"""Links lead nowhere outside of the repository: their words stay."""
ITEM = re.compile(r"^(?:- |\d+\. )", re.MULTILINE)


def html(text: str) -> Markup:
    """The page below its title."""
    return Markup("\n").join(map(_block, filter(None, map(str.strip, _blocks(text)))))


def _blocks(text: str) -> Iterator[str]:
    """Parts between empty lines, title left out."""
    yield from re.sub(r"\A# .*\n", "", text).split("\n\n")


def _block(block: str) -> Markup:
    if block.startswith("|"):
        return Markup("<pre>{}</pre>").format(block)
    heading, _, rest = block.partition("\n") if block.startswith("#") else ("", "", block)
    above = Markup("<h4>{}</h4>").format(line(heading.lstrip("# "))) if heading else Markup("")
    if not ITEM.match(rest):
        said, _, listed = re.sub(r"\n(?=- )", "\0", rest, count=1).partition("\0")
        above += Markup("<p>{}</p>").format(line(said)) if said else Markup("")
        rest = listed
    items = [line(item) for item in ITEM.split(rest) if item]
    below = Markup("").join(Markup("<li>{}</li>").format(item) for item in items)
    return above + (Markup("<ul>{}</ul>").format(below) if items else Markup(""))


def line(text: str) -> Markup:
    """Words on one line, with their code, bold and italics."""
    safe = str(escape(" ".join(text.split())))
    for pattern, made in INLINE:
        safe = pattern.sub(made, safe)
    return Markup(safe)
