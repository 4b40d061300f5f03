PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt
INPUTS := pyproject.toml hatch_build.py runtimes/fieldrun_runtimes/native/native.c .ci/constraints.txt $(VENV)/.made

.DEFAULT_GOAL := help
.PHONY: help demo test test-studies wheels test-arm test-gpu test-tensorrt bench docs lint format clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile | expand -t 20

demo: $(VENV)/.demo ## export, verify and run the reference model
	@$(BIN)/python -m studies.demo

test: lint ## lint, type-check and test with coverage
	@$(BIN)/mypy & types=$$!; $(BIN)/python -m pytest --cov -n $(JOBS) --dist loadfile; tests=$$?; wait $$types && exit $$tests

test-studies: $(VENV)/.dev ## test the studies behind the tables and pages, and packed apps, which make test leaves out
	$(BIN)/python -m pytest -m study -n $(JOBS) --dist loadfile

wheels: $(VENV)/.dev ## build the wheels of fieldrun and of its reference checkpoint into dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist . ./sdk/checkpoints

test-arm: $(VENV)/.dev ## replay the shipped bundle and the recipe raspberry-pi on emulated ARM processors (numerics only)
	$(BIN)/python -m tests.arm

bench: $(VENV)/$(if $(GTE),.peers,.bench) ## measure again: DATA=FOLDER, for the peers GTE=, MINILM= and WORK= too
ifdef DATA
	$(BIN)/python -m studies.student.measure --data $(DATA) -o benchmarks/records
ifdef GTE
	$(BIN)/python -m studies.peers.measure --data $(DATA) --gte $(GTE) --minilm $(MINILM) --work $(WORK) -o benchmarks/records/peers.json
	@mkdir -p build
	$(BIN)/fieldrun report benchmarks/records/peers.json -o build/peers.html --force
endif
	$(BIN)/python -m studies.tables
endif
	$(BIN)/fieldrun bench reference --quick --report build/bench

docs: $(VENV)/.docs ## build the documentation into build/site; a broken link fails it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test-gpu: $(VENV)/.dev ## with a GPU: golden fields and speed of every GPU engine, into build/records
	FIELDRUN_RECORDS=build/records $(BIN)/python -m pytest -m gpu -rs tests

test-tensorrt: $(VENV)/.dev ## build the shipped student for three GPUs, without one, into build/records
	$(BIN)/python -m studies.tensorrt_build.measure -o build/records/tensorrt-build.json

lint: $(VENV)/.dev ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.dev ## rewrite the code in the house format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## delete the environment, caches and build output
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find sdk exporters runtimes benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is touched last, so that an interrupted step is done again.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit("fieldrun needs Python 3.10 or later; run make PYTHON=python3.x" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(INPUTS)
	@echo "installing fieldrun[ort,export] into $(VENV)"
	@$(PIP) -e '.[ort,export]'
	@touch $@

$(VENV)/.bench: $(INPUTS)
	@echo "installing fieldrun[bench] into $(VENV)"
	@$(PIP) -e '.[bench]'
	@touch $(VENV)/.demo $@

$(VENV)/.peers: $(INPUTS)
	@echo "installing fieldrun[bench,peers] into $(VENV)"
	@$(PIP) -e '.[bench,peers]'
	@touch $(VENV)/.demo $(VENV)/.bench $@

$(VENV)/.docs: $(INPUTS)
	@echo "installing fieldrun[docs] into $(VENV)"
	@$(PIP) -e '.[docs]'
	@touch $@

$(VENV)/.dev: $(INPUTS)
	@echo "installing fieldrun[dev] into $(VENV)"
	@$(PIP) -e '.[dev]'
	@touch $(VENV)/.demo $(VENV)/.bench $(VENV)/.docs $@
