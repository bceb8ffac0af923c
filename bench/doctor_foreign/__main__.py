"""What `assay doctor` says of real runs of TRL, healthy and with a fault put in: docs/results/doctor_foreign.md.

    make doctor-foreign                      →  docs/results/doctor_foreign.md; ten minutes on two cores
    make doctor-foreign TRAINERS="ppo dpo"   →  those alone, on the screen

TRL's own trainers train a model of a few thousand weights on answers of coloured words, in TRL's own environment; the
doctor reads the log that each run leaves, and nothing else. Runs that are finished are kept in .bench/foreign/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench import common
from bench.doctor_foreign import page, runs

PAGE = common.RESULTS / "doctor_foreign.md"


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainers", nargs="*", metavar="TRAINER", help=f"these alone: {', '.join(runs.BASE)}")
    trainers = parser.parse_args(words).trainers
    if odd := set(trainers) - set(runs.BASE):
        parser.error(f"no trainer is called {', '.join(sorted(odd))}: {', '.join(runs.BASE)}")
    facts = common.origin("make doctor-foreign")
    seen = [one for trainer in trainers or runs.BASE for one in runs.made(trainer)]
    if trainers:
        print(page.text(facts, seen))
    else:
        common.write(PAGE, page.text(facts, seen))


if __name__ == "__main__":
    main(sys.argv[1:])
