# Two commands for a newcomer: `make demo` and `make test`. Everything lands in .venv and runs/.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= runs/demo
# Settings of your own for the demo, as in `make demo SMALLER="simulate.exposures=100 ssl.steps=50"`.
SMALLER ?=
# What `make check` runs of the tests; `make test` runs all of them.
FAST := tests/artifacts tests/config tests/instruments tests/test_compose.py tests/test_docs.py tests/test_pipeline.py
STAMP := $(VENV)/.installed

.PHONY: install demo test check format docs clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (torch first, in its CPU build)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[mpi,simulate,metrics,dev]"
	@touch $@

demo: install
	$(BIN)/hpcqa run experiment=demo survey=simulated run=$(DEMO) $(SMALLER)

# The tests on a Slurm cluster have nodes to keep busy and times to meet: they run alone, after the others.
test: install
	$(BIN)/python -m pytest -m "not slurm" --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder --durations 25
	$(BIN)/python -m pytest -m slurm

check: install
	$(BIN)/ruff format --check hpcqa tests benchmarks conf
	$(BIN)/ruff check hpcqa tests benchmarks conf
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q -x -m "not slurm and not slow and not browser" $(FAST)

format: install
	$(BIN)/ruff format hpcqa tests benchmarks conf
	$(BIN)/ruff check --fix hpcqa tests benchmarks conf

docs: install
	$(BIN)/python -m hpcqa.artifacts.describe > docs/file-formats.md

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
