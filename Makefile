# `make demo` and `make test` need Python 3.11 or newer and nothing else; both work in .venv, which they create.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo test lint unit fuzz random-graphs bench clean

demo: $(VENV)/.demo
	$(BIN)/whet demo

test: lint unit

lint: $(VENV)/.test
	$(BIN)/ruff format --check src tests training benchmarks tools
	$(BIN)/ruff check src tests training benchmarks tools
	$(BIN)/mypy

unit: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -q tests

# Long runs by hand; continuous integration runs short ones of the same.
fuzz: $(VENV)/.test
	$(BIN)/python -m tests.fuzz --seconds 600
	$(BIN)/python -m tests.server.grpc_fuzz --seconds 600
	$(BIN)/python -m tests.server.http_fuzz --seconds 600
	$(BIN)/python -m tests.kernel_fuzz --calls 10000000 --kernels 3000 --jobs $(JOBS)
	$(BIN)/python -m tests.threaded_runs --runs 100000

random-graphs: $(VENV)/.test
	$(BIN)/python -m tests.random_graphs --count 100000 --jobs $(JOBS)

# Every model beside the peers (half an hour of a quiet machine), its answers beside float64, and the plot of the README.
# TORCH=PYTHON adds torch.compile, from an environment that benchmarks/torch_worker.py describes.
NETWORKS := build/networks
THREADS ?= 2
ROUNDS ?= 7
MODELS = $(NETWORKS) $(wildcard ../shared/models)

bench: $(VENV)/.test
	$(BIN)/python benchmarks/networks.py $(NETWORKS)
	$(BIN)/python benchmarks/zoo.py --threads $(THREADS) --rounds $(ROUNDS) $(if $(TORCH),--torch $(TORCH)) \
	    --output benchmarks/results/zoo.json $(MODELS)
	$(BIN)/python benchmarks/plot.py --output benchmarks/results/speed_ups.svg benchmarks/results/zoo.json
	$(BIN)/python benchmarks/overhead.py --output benchmarks/results/overhead.json
	$(BIN)/python benchmarks/accuracy.py --output benchmarks/results/accuracy.json $(MODELS)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Whet needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[onnxruntime]'
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
