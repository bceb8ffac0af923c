"""The index of the pages in docs/doctor/, made from the modes themselves.

python -m assay.doctor.index > docs/doctor/README.md
"""

from __future__ import annotations

from assay.doctor.examination import FAMILIES
from assay.doctor.finding import Family, Mode

TITLES: dict[Family, str] = {
    "data": "Data",
    "machine": "Settings and machine",
    "sft": "Supervised fine-tuning",
    "reward": "Reward model",
    "policy": "PPO and group methods",
    "direct": "DPO and its family",
}
OPENING = """\
# What the doctor finds

Every way of going wrong that `assay doctor` knows, by where it shows. A page says what one sees, why it happens, how
the doctor decides, and how to fix it. `assay doctor RECIPE` looks before a run, `assay doctor RUN` after it; see
[troubleshooting](../troubleshooting.md).

<!-- Made by `python -m assay.doctor.index`: change the modes, not this page. -->
"""


def index() -> str:
    """docs/doctor/README.md: every mode with a link to its page, by family, in the order of the catalogue."""
    found: set[Mode] = {value for family in FAMILIES for value in vars(family).values() if isinstance(value, Mode)}
    parts = [OPENING]
    for family, title in TITLES.items():
        own = sorted((mode for mode in found if mode.family == family), key=lambda mode: mode.number)
        rows = "".join(f"| [{mode.title}]({mode.name}.md) | {mode.cause} |\n" for mode in own)
        parts.append(f"## {title}\n\n| what you see | why |\n|---|---|\n{rows}")
    return "\n".join(parts)


if __name__ == "__main__":
    print(index(), end="")
