"""The cure of a finding as settings that can be pasted behind `assay run RECIPE`.

Detectors name the keys of the stage that they look at (`kl_coef`); a user has to write the stage's id before them
(`ppo.kl_coef`). What is set already is no cure, and two cures of one key must not contradict each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from assay.doctor.finding import Finding
from assay.document import write_value

BEFORE = "before.json"
"""What the doctor found before anything was computed, in the run's folder."""


def settled(finding: Finding, config: Mapping[str, Any]) -> Finding:
    """The finding with full keys and rounded numbers, without what the stage's settings have already."""
    given = {key: _rounded(value) for key, value in finding.change.items()}
    held = {key: value for key, value in given.items() if _same(_at(config, key), value)}
    change = {f"{finding.where}.{key}": value for key, value in given.items() if key not in held}
    if not held:
        return replace(finding, change=change)
    already = " and ".join(f"{key}={write_value(value)}" for key, value in held.items())
    return replace(finding, change=change, cure=f"{finding.advice} ({already}: that is so already.)")


def agreeing(finding: Finding, proposed: Mapping[str, Any]) -> Finding:
    """The finding, with what was proposed before the run for any key that it would change."""
    return replace(finding, change={key: proposed.get(key, value) for key, value in finding.change.items()})


def proposed(run: Path) -> dict[str, Any]:
    """Key → value of every cure that the doctor told before a run, which knows more than a log: the model's size."""
    try:
        causes = json.loads((run / BEFORE).read_text(encoding="utf-8"))["findings"]
        return {key: value for one in causes for key, value in one["change"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}  # whatever lies there, a cure of the log's own is good enough


def written(change: Mapping[str, Any]) -> list[str]:
    """key=value, as the command line and any reader of YAML take it."""
    return [f"{key}={write_value(value)}" for key, value in change.items()]


def _rounded(value: Any) -> Any:
    """Two digits of a number: a proposal is no measurement."""
    return float(f"{value:.1e}") if isinstance(value, float) else value


def _at(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other)
    return one == other
