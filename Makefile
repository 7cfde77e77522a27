# Works on a machine that has only python3 and make. Everything is installed into .venv.
PYTHON ?= python3
# Installed first and exactly: a bare "torch" may bring gigabytes of CUDA along.
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
# Two threads are what the smallest supported machine has.
export OMP_NUM_THREADS ?= 2

.PHONY: demo test test-slow test-oracle lint bench clean

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/01_quickstart.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest --durations=10

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow --durations=10

test-oracle: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[oracles]'
	$(BIN)/python -m pytest -m oracle --durations=10

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/training_step.py
	$(BIN)/python tests/benchmarks/neighbors.py
	$(BIN)/python tests/benchmarks/potentials.py
	$(BIN)/python tests/benchmarks/optimize.py
	$(BIN)/python tests/benchmarks/md.py speed
	$(BIN)/python tests/benchmarks/inference.py

clean:
	rm -rf $(VENV) build dist *.egg-info
