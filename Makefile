# The commands that a newcomer needs; each sets up what it lacks.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup check test test-slow demo bench clean

help:
	@echo "make demo       close the loop on this machine and draw what happened"
	@echo "make test       the test suite, real engines included"
	@echo "make check      ruff, types, import rules"
	@echo "make test-slow  what is too long for make test"
	@echo "make bench      benchmarks; JSON under bench-results/"
	@echo "make setup      only the virtual environment"
	@echo "make clean      what the commands above left behind, without .venv"

setup:
	@$(PYTHON) deploy/setup/environment.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup
	$(BIN)/pytest -m "not slow and not gpu" -n 2

test-slow: setup
	$(BIN)/pytest -m "slow and not gpu" --timeout 900 --junitxml test-results/slow.xml

demo: setup
	$(BIN)/tandem demo

bench: setup
	@mkdir -p bench-results
	@for f in tests/bench/bench_*.py; do echo "== $$f"; $(BIN)/python $$f || exit 1; done

clean:
	rm -rf data bench-results test-results demo.png demo-report.json
