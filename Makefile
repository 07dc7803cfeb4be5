# The commands that people type. The first one creates a virtual environment in .venv and installs the package there.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo

# OpenMP threads that spin while they wait slow a busy machine down many times over.
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help install demo test fuzz check docs dist test-lowest gpu bench clean

help:  ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

install: $(VENV)/.installed  ## create .venv with everything that development needs

$(VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: install  ## draw videos, train a tiny model, evaluate it, index the test videos, search
	$(BIN)/python examples/train.py --recipe configuration/recipes/moving_shapes.yaml --output $(RUN) --resume
	$(BIN)/pig index data/moving_shapes/test --model $(RUN)/model --index $(RUN)/videos.lance
	$(BIN)/python examples/search_videos.py --index $(RUN)/videos.lance --recipe $(RUN)/recipe.yaml --output $(RUN)/answers.png

test: install  ## run the tests
	$(BIN)/python -m pytest -n 2

test-lowest:  ## run the tests with the lowest versions that setup.py allows, in .venv-lowest
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet uv
	@# Without the name of datasets, uv would take the newest fsspec first, and then the newest datasets, which needs it.
	$(VENV)-lowest/bin/uv pip install --quiet --python $(VENV)-lowest --resolution lowest-direct \
		"datasets==4.1.*" --editable ".[dev]"
	$(VENV)-lowest/bin/python -m pytest -n 2

fuzz: install  ## decode 20,000 mutated videos; failing ones are written to runs/fuzz
	$(BIN)/python -m tests.fuzz_decoding --inputs 20000 --folder runs/fuzz

check: install  ## check style, types, spelling and the links of the docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos
	$(BIN)/hadolint Dockerfile
	$(BIN)/mypy
	$(BIN)/python hub_scripts/lint_exported_files.py
	$(BIN)/mkdocs build --strict --quiet

docs: install  ## write the documentation with the API reference to site/
	$(BIN)/mkdocs build --strict

dist: install  ## build the wheel and the source distribution in dist/, and check them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

bench: install  ## measure costs beside named peers, write docs/benchmarks.md (45 minutes on two cores)
	$(BIN)/python -m pytest -m bench
	$(BIN)/python examples/benchmark.py model --json runs/benchmark-model.json
	$(BIN)/python examples/benchmark.py ranking --json runs/benchmark-ranking.json
	$(BIN)/python examples/benchmark.py train --json runs/benchmark-train.json
	$(BIN)/python examples/benchmark.py search --threads 1 --json runs/benchmark-search.json
	$(BIN)/python examples/benchmark.py rerank --threads 1 --json runs/benchmark-rerank.json
	$(BIN)/python examples/benchmark.py index --json runs/benchmark-index.json
	$(BIN)/python examples/benchmark.py maintain --threads 1 --json runs/benchmark-maintain.json
	$(BIN)/python examples/benchmark.py encoders --json runs/benchmark-encoders.json
	$(BIN)/python examples/benchmark.py start --json runs/benchmark-start.json
	$(BIN)/python examples/benchmark.py app --threads 1 --json runs/benchmark-app.json
	$(BIN)/python examples/benchmark_page.py runs/benchmark-*.json --output docs/benchmarks.md

gpu: install  ## on a machine with CUDA: check and measure everything there, write docs/gpu.md (20 minutes)
	$(BIN)/python examples/gpu_report.py --output docs/gpu.md

clean:  ## remove the environment, the demo's videos and run, and what was built
	rm -rf $(VENV) $(VENV)-lowest data/moving_shapes $(RUN) site dist
