# Every target does its own set-up and can be repeated.
PYTHON ?= python3
VENV   ?= .venv
RUN     = $(VENV)/bin/python -m onerec_jax.main

.PHONY: quickstart test smoke gpu-debug lint types pytest results clean

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"onerec_jax needs Python 3.11 or newer, $(PYTHON) is {v[0]}.{v[1]}. Try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

quickstart: $(VENV)/.runtime  ## MovieLens-100K, end to end, aligned, with a report
	$(RUN) run --config=experiments/quickstart.py --workdir=runs/quickstart

smoke: $(VENV)/.runtime  ## every stage on a simulated world, no download
	rm -rf runs/smoke runs/smoke_tr
	$(RUN) run --config=experiments/smoke.py:v1 --workdir=runs/smoke
	$(RUN) run --config=experiments/smoke.py:tr --workdir=runs/smoke_tr

$(VENV)/.gpu: $(VENV)/.runtime
	! command -v nvidia-smi >/dev/null || $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'jax[cuda13]'
	@touch $@

gpu-debug: $(VENV)/.gpu  ## the quickstart's training on one GPU, with a profile
	rm -rf runs/gpu_debug
	$(VENV)/bin/python -m experiments.gpu_debug

test: lint types pytest  ## everything CI runs

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.dev
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python

pytest: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

results: $(VENV)/.runtime  ## rewrite the tables of all pages from the result files
	$(VENV)/bin/python -m experiments.results --write

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
