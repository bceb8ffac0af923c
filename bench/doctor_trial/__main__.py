"""Puts the doctor on trial: fifty modes injected one at a time and in pairs, and healthy runs.

    make doctor-trial                                  →  docs/results/doctor.md, docs/results/doctor.json
    python -m bench.doctor_trial --only kl-blow-up     what is said of the cases so named, and nothing written

What is finished is kept in .bench/doctor_trial/, by the code that it is about: a trial that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from bench import common
from bench.doctor_trial import page
from bench.doctor_trial.trial import KEPT, cases, digest, finished

SEEDS = 3
"""Of every fault."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="WORDS", help="cases whose name contains this")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how often each fault is injected ({SEEDS})")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each (2)")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_args()
    wanted = [case for case in cases(asked.seeds).values() if (asked.only or "") in case.key]
    if not wanted:
        raise SystemExit(f'no case is named like "{asked.only}"')

    facts = common.origin("make doctor-trial")
    began = time.monotonic()
    folder = KEPT / digest()
    records = [record for case in finished(wanted, folder, asked.workers, asked.seeds) for record in case]
    if asked.only:
        return
    facts["minutes"] = round((time.monotonic() - began) / 60, 1)
    facts["processor_minutes"] = round(sum(record.seconds for record in records) / 60, 1)
    common.write(asked.results / "doctor.md", page.text(facts, records))
    common.write(asked.results / "doctor.json", json.dumps(page.numbers(facts, records), indent=1) + "\n")


if __name__ == "__main__":
    main()
