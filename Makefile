# Two commands from a fresh clone: `make demo` and `make test`. Both make .venv first and are safe to repeat.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo

.PHONY: demo docs test lint format install system-packages bench torture clean

demo: $(VENV)/.installed-demo
	$(BIN)/saga-fast demo --out $(OUT)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

docs: $(VENV)/.installed-test
	$(BIN)/python tools/config_reference.py
	$(BIN)/mkdocs build --strict

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed-test

bench: $(VENV)/.installed-test
	PYTHONPATH=. $(BIN)/python benchmarks/bench_folder.py --out benchmarks/results/bench_folder.json
	PYTHONPATH=. $(BIN)/python benchmarks/bench_ffcv.py --out benchmarks/results/bench_ffcv.json
	PYTHONPATH=. $(BIN)/python benchmarks/bench_dali.py --out benchmarks/results/bench_dali.json
	PYTHONPATH=. $(BIN)/python benchmarks/bench_attention.py --out benchmarks/results/bench_attention.json
	PYTHONPATH=. $(BIN)/python benchmarks/bench_renewal.py --out benchmarks/results/bench_renewal.json
	PYTHONPATH=. $(BIN)/python benchmarks/bench_kernels.py --out benchmarks/results/bench_kernels.json
	PYTHONPATH=. $(BIN)/python -m benchmarks.readme

# About five minutes on two cores; as root it also fills up small file systems.
torture: $(VENV)/.installed-test
	PYTHONPATH=.:tests/train $(BIN)/python -m benchmarks.torture

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/.installed-demo: $(VENV)/.made pyproject.toml
	@echo 'installing saga-fast and what it needs: some minutes, once'
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

# FFCV is built from source: it needs a C++ compiler, OpenCV, libturbojpeg and pkg-config.
$(VENV)/.installed-test: $(VENV)/.made pyproject.toml
	@echo 'installing saga-fast with every extra: some minutes, once'
	./tools/system-packages.sh
	$(BIN)/python -m pip install --quiet --editable '.[dev,ffcv,dali]'
	touch $@
