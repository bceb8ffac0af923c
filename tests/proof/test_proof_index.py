"""docs/proof.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_the_document_names_exists() -> None:
    file, named = "", []
    for path, name in re.findall(
        r"`([\w/]*(?:\.py)?)::(\w+)`", (ROOT / "docs" / "proof.md").read_text(encoding="utf-8")
    ):
        file = path or file
        named.append((file, name))
    assert len(named) > 90
    missing = [
        f"{file}::{name}"
        for file, name in named
        if f"def {name}(" not in (ROOT / "tests" / file).read_text(encoding="utf-8")
    ]
    assert not missing
