"""What a person meets at the command line: help at once, errors in two lines, exit codes, clean stdout."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from assay import __version__
from assay.cli.main import app
from assay.cli.output import explain
from assay.errors import AssayError, Interrupted, StorageError
from assay.pipeline.recipe import headline, load_recipe
from assay.pipeline.reference import configuration_reference

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "peft", "scipy", "sklearn", "numpy")


def assay(*words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command, run in this process."""
    result = CliRunner().invoke(app, list(words), prog_name="assay")
    return result.exit_code, result.stdout, result.stderr


def seconds(program: str) -> float:
    """Processor seconds of a Python program, the best of three."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(3))


def test_import_and_help_answer_within_half_a_second_of_processor_time():
    assert seconds("import assay") < 0.5
    assert seconds("import sys; sys.argv = ['assay', '--help']; from assay.cli.main import app; app()") < 0.5


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["config", "validate", "sandbox"]])
def test_nothing_heavy_is_loaded_for_help_or_to_check_a_recipe(words: list[str]):
    program = f"""
import sys
sys.argv = ["assay", *{words!r}]
from assay.cli.main import app
try:
    app()
except SystemExit as end:
    assert not end.code, end.code
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command_and_the_first_thing_to_type():
    code, out, _ = assay("--help")
    assert code == 0
    assert all(word in out for word in ("run", "data", "report", "lineage", "config", "assay run"))


def test_the_version_is_printed():
    assert assay("--version") == (0, f"assay {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["rn"], "No such command 'rn'", "Did you mean 'run'?"),
        (["run", "--onyl", "sft"], "No such option", "assay run --help"),
        (["run", "sandbx"], "there is no recipe 'sandbx'", 'did you mean "sandbox"?'),
        (["run", "sandbox", "other"], "'other' is not key=value", "seed=1"),
        (["run", "sed=1"], 'command line: there is no key or stage "sed"', 'did you mean "seed"?'),
        (["run", "--only", "pp0"], 'the recipe has no stage "pp0"', 'did you mean "ppo"?'),
        (["run", "--only", "ppo", "--from", "sft"], "exclude each other", "one of them"),
        (["run", "ppo.kl_target=much"], 'ppo.kl_target: must be a number, not "much"', ""),
        (["config", "validate", "nowhere.yaml"], "there is no recipe 'nowhere.yaml'", ""),
        (["lineage", "ppo-123"], 'no artifact or run "ppo-123"', "--runs-dir"),
        (["report", "nowhere"], "nowhere", ""),
    ],
)
def test_a_wrong_request_is_one_error_with_a_hint_and_exit_code_2(
    words: list[str], error: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    code, out, err = assay(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert error in err
    assert hint in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_traceback_comes_with_debug_and_only_then():
    for words in (["--debug", "run", "sandbx"], ["run", "sandbx", "--debug"]):
        code, _, err = assay(*words)
        assert code == 2
        assert "Traceback" in err
        assert err.rstrip().splitlines()[-2].startswith("error: ")


def test_exit_codes_say_who_can_fix_it():
    codes = [explain(error)[2] for error in (AssayError("x"), StorageError("x"), Interrupted("x"), KeyboardInterrupt())]
    assert codes == [1, 1, 130, 130]
    what, hint, code = explain(KeyError("lost"))
    assert (what, code) == ("a fault in assay itself: KeyError: 'lost'", 1)
    assert "--debug" in hint
    for error in (
        RuntimeError("CUDA out of memory. Tried to allocate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("could not create a memory object"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        MemoryError(),
    ):
        same, changed = explain(error)[1].split(";")
        assert all(name in same for name in ("micro_batch_size", "decode_batch", "gradient_checkpointing=true"))
        assert all(name in changed for name in ("lora", "max_length"))


def test_config_ls_lists_the_recipes_with_what_they_say_about_themselves():
    code, out, _ = assay("config", "ls", "--json")
    recipes = {recipe["name"]: recipe for recipe in json.loads(out)}
    assert code == 0
    assert recipes["sandbox"]["about"].endswith("learns what its simulated guests prefer.")
    assert "sandbox" in assay("config", "ls")[1]


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("# One thing: another. More of it.\nmodel: x\n", "One thing: another."),
        ("# Read by people, on a laptop:\n#   assay run this\n# It takes minutes.\n", "Read by people, on a laptop."),
        ("# A sentence of\n# two lines\nstages: []\n# not this\n", "A sentence of two lines."),
        ("# Of 1.5 M parameters\n", "Of 1.5 M parameters."),
        ("model: x\n# later\n", ""),
    ],
)
def test_a_recipe_is_listed_by_the_first_sentence_of_its_comment(text: str, about: str, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(text)
    assert headline(tmp_path / "mine.yaml") == about


def test_a_dry_run_can_be_ended_at_once(monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C asks a run to save a checkpoint first; a plan has none."""
    at_rest, during = signal.getsignal(signal.SIGINT), []

    def plan(named: object, request: object) -> dict[str, str]:
        during.append(signal.getsignal(signal.SIGINT))
        return {}

    monkeypatch.setattr("assay.pipeline.plan.plan", plan)
    assert assay("run", "--dry-run", "--json")[0] == 0
    assert during == [at_rest]


def test_config_show_prints_a_recipe_that_is_the_same_recipe(tmp_path: Path):
    code, out, _ = assay("config", "show", "sandbox", "seed=3", "ppo.kl_stop=null")
    assert code == 0
    (tmp_path / "sandbox.yaml").write_text(out)
    again = load_recipe(str(tmp_path / "sandbox.yaml"), (), {})
    assert again.recipe == load_recipe("sandbox", ("seed=3", "ppo.kl_stop=null"), {}).recipe
    shown = json.loads(assay("config", "show", "sandbox", "seed=3", "--json")[1])
    assert shown["seed"] == 3


def test_config_validate_names_the_stages_or_every_fault(tmp_path: Path):
    assert "sft → reward → ppo → evaluate" in assay("config", "validate", "sandbox")[1]
    (tmp_path / "bad.yaml").write_text("data: {world: frontdesk}\nstages:\n  - stf: {}\nsed: 1\n")
    code, out, err = assay("config", "validate", str(tmp_path / "bad.yaml"))
    assert (code, out) == (2, "")
    assert 'bad.yaml:3: stage 1: unknown stage "stf" (did you mean "sft"?)' in err
    assert 'bad.yaml:4: unknown key "sed" (did you mean "seed"?)' in err


def test_the_configuration_reference_is_the_one_the_schemas_make():
    on_disk = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert on_disk == configuration_reference(), "make it again: assay config docs > docs/configuration.md"


def test_the_reference_names_every_setting_with_its_meaning():
    text = configuration_reference()
    for key in ("kl_target", "learning_rate", "balance_by", "length_bias", "no_repeat_ngram", "target_modules"):
        row = next(line for line in text.splitlines() if line.startswith(f"| `{key}` |"))
        assert len(row.split("|")[4].strip()) > 10, row
