# Two commands from a fresh clone: `make demo` and `make test`. Both make .venv first and are safe to repeat.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo
RESULTS := benchmarks/results
PYTHONS ?= python3.11 python3.12 python3.13
RUN := PYTHONPATH=. $(BIN)/python
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

.PHONY: demo test check docs lint format install bench torture release clean

demo: $(VENV)/.installed-demo
	$(BIN)/saga-fast demo --out $(OUT)

# One process per core, at most four: each test has one torch thread.
test: $(VENV)/.installed-test
	$(PYTEST)

# While editing: the quick tests and the linters, in a few minutes. `make test` runs everything.
check: $(VENV)/.installed-test
	$(PYTEST) -m "not slow"
	$(MAKE) lint

# Generated parts of the pages first, then the site.
docs: $(VENV)/.installed-test
	$(BIN)/python tools/config_reference.py
	$(RUN) -m benchmarks.pages
	$(BIN)/mkdocs build --strict

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck .ci/run */*.sh
	$(BIN)/hadolint Dockerfile

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed-test

bench: $(VENV)/.installed-test
	for name in folder ffcv dali attention renewal kernels; do \
		$(RUN) benchmarks/bench_$$name.py --out $(RESULTS)/bench_$$name.json || exit 1; \
	done
	$(RUN) -m benchmarks.pages

# About five minutes on two cores; as root it also fills up small file systems.
torture: $(VENV)/.installed-test
	PYTHONPATH=.:tests/train $(BIN)/python -m benchmarks.torture --out $(RESULTS)/torture.json

# Wheel and sdist in dist/, after the wheel's commands have run in an empty environment of each Python: some minutes each.
release: $(VENV)/.installed-test
	$(BIN)/python tools/check_release.py $(PYTHONS)

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
