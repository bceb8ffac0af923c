"""Runs pytest again and again, each time in a fork of a process that has imported the libraries but nothing of Assay.

    {"tests": ["tests/…"]} on stdin, a line a run  →  {"code": 0, "output": "…"} on stdout, after where Assay is

Most of what one mistake costs (bench/mutants.py) would else be the imports of the libraries.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from tempfile import TemporaryFile

import pytest

LIBRARIES = (
    "hypothesis",
    "peft",
    "pytest_timeout",
    "safetensors.torch",
    "scipy.optimize",
    "torch._dynamo",
    "transformers.models.llama.modeling_llama",
)
OPTIONS = ("-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "pytest_timeout")
IMPORTED_BEFORE = ("-W", "ignore::pytest.PytestAssertRewriteWarning")


def main() -> None:
    spec = importlib.util.find_spec("assay")
    for library in LIBRARIES:
        importlib.import_module(library)
    print(spec and spec.origin, flush=True)
    for line in sys.stdin:
        with TemporaryFile("w+", encoding="utf-8") as output:
            child = os.fork()
            if child == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                code = pytest.main([*OPTIONS, *IMPORTED_BEFORE, *json.loads(line)["tests"]])
                sys.stdout.flush()
                os._exit(code)  # to tidy up all that was imported would take longer than the tests
            _, status = os.waitpid(child, 0)
            output.seek(0)
            answer = {"code": os.waitstatus_to_exitcode(status), "output": output.read()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
