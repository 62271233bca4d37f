# `make test` on a fresh clone needs Python, make and a package index; nothing else of the machine.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# Bound to this folder: the scripts of a copied environment still name the folder that it was made in.
STAMP := $(VENV)/.installed-$(shell printf '%s' '$(CURDIR)' | cksum | cut -d ' ' -f 1)

.PHONY: help install lint format test chaos load bench bench-sampling bench-peers bench-training lm-eval demo example-data clean

help: ## Say what there is to make.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

install: $(STAMP) ## Make .venv with everything: servers, workers, tests (PYTHON=python3.12 chooses another Python).

$(STAMP): pyproject.toml scripts/make_venv.sh
	@scripts/make_venv.sh '$(PYTHON)' '$(VENV)'
	@$(PY) -m pip install --quiet --editable '.[embedded,dev]'
	@touch '$@'

lint: install ## Style, types, import contracts, containers.
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -c 'from importlinter.cli import lint_imports_command as lint; lint()'
	@$(PY) -m mypy
	@$(PY) scripts/check_containers.py

format: install ## Put the code into the project's format.
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

test: lint ## Everything that must hold before a change lands.
	@$(PY) -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

chaos: install ## Torment the protocol, then kill, freeze and stop every process of a stack (long); writes docs/reliability.md.
	@MPO_SEQUENCES=2000 MPO_ROUNDS=1000 $(PY) -m pytest --numprocesses=2 --dist=load tests/protocol
	@TORMENT=long $(PY) -m pytest tests/end_to_end/test_faults.py
	@$(PY) -m experiments.chaos --seeds 0 1 2 --least 5000 --docs docs

demo: install ## Train a tiny model from start to end on this machine.
	@$(PY) -m mpo_client.cli demo

load: install ## How many requests a second a whole stack takes (3 minutes); writes docs/benchmarks.md.
	@$(PY) -m bench.load --docs docs/benchmarks.md

bench-sampling: install ## Tokens a second against transformers' generate, first tokens, memory; writes docs/benchmarks.md.
	@$(PY) -m bench.sampling --docs docs/benchmarks.md

bench: install ## Nearly every benchmark once, as small as it goes (under 10 minutes): that it runs, not what it says.
	@$(PY) -m bench.smoke

bench-peers: install ## The opponents' environments (2 GB in BENCH_ENVS, by default .bench-envs).
	@scripts/make_bench_peers.sh $(PY) "$${BENCH_ENVS:-.bench-envs}"

bench-training: bench-peers ## Reward model, DPO and PPO against stock TRL (an hour; PAIRS=FILE); writes docs/benchmarks.md.
	@scripts/bench_training.sh $(PY) '$(PAIRS)'

lm-eval: install ## The lm_eval command against the service and its own `hf` backend (minutes; an environment of its own).
	@test -x .bench-envs/lm-eval/bin/lm_eval || $(PY) -m venv .bench-envs/lm-eval
	@.bench-envs/lm-eval/bin/pip install --quiet 'lm-eval[api,hf]>=0.4.9,<0.5' 'torch>=2.11,<2.14'
	@$(PY) -m experiments.lm_eval --command .bench-envs/lm-eval/bin/lm_eval

example-data: install ## Make the example model and data anew.
	@$(PY) -m examples.make_tiny

clean: ## Remove the environment and what tools left behind, the demo's state too.
	@if [ -d .demo ] && [ -x $(PY) ]; then $(PY) -m mpo_client.cli down --state .demo; fi
	@rm -rf '$(VENV)' .demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
