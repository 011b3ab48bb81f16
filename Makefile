# `make serve` and `make test` need Python 3.11 and make; they set up everything else themselves.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
SERVE  := .venv-serve
DEV    := .venv
MODEL  ?= fashion-32
RUN    ?= runs/$(MODEL)
TORCH  := 2.13.0
PIP    := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Garment photographs, a Debian package: https://packages.debian.org/dataset-fashion-mnist
FASHION_MNIST := /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz

.DEFAULT_GOAL := help

.PHONY: help serve test test-all check format train evaluate export constraints wheel wheel-check clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# --- environments ----------------------------------------------------------------------------

$(SERVE)/installed: pyproject.toml constraints.txt
	@echo "setting up the serving environment in $(SERVE)" >&2
	$(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/python $(PIP) --editable '.[cpu]'
	touch $@

$(DEV)/installed: pyproject.toml constraints.txt
	@echo "setting up the development environment in $(DEV)" >&2
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python $(PIP) torch
	$(DEV)/bin/python $(PIP) --editable '.[cpu,train,export,dev]'
	touch $@

$(FASHION_MNIST):
	@.ci/install-debian dataset-fashion-mnist

# --- the two commands ------------------------------------------------------------------------

serve: $(SERVE)/installed  ## serve the model that ships in this repository on 127.0.0.1:8000
	@exec $(SERVE)/bin/cat-serve serve

test: $(DEV)/installed | $(FASHION_MNIST)  ## run the quick test suite
	$(DEV)/bin/python -m pytest -m 'not slow'

test-all: $(DEV)/installed | $(FASHION_MNIST)  ## run every test, the slow ones too
	$(DEV)/bin/python $(PIP) --editable '.[tensorrt-rtx]'
	$(DEV)/bin/python -m pytest

check: $(DEV)/installed  ## formatting, lint, types, import rules, Dockerfile, then the tests
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/ruff check .
	$(DEV)/bin/mypy
	$(DEV)/bin/lint-imports
	$(DEV)/bin/hadolint Dockerfile
	$(MAKE) test

format: $(DEV)/installed  ## format the code
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

# --- the model -------------------------------------------------------------------------------

train: $(DEV)/installed | $(FASHION_MNIST)  ## train VAE and generator again; interrupted runs go on
	$(DEV)/bin/python -m training.train_vae --latent-channels 8 --kl-weight 1e-4 --total-nimg 200000 --out $(RUN)/vae
	$(DEV)/bin/python -m training.prepare --vae $(RUN)/vae --out data/$(MODEL)
	$(DEV)/bin/python -m training.train --preset $(MODEL) --data data/$(MODEL) --vae $(RUN)/vae --run $(RUN)

export: $(DEV)/installed  ## export checkpoints/MODEL.safetensors into model_repository/
	$(DEV)/bin/python -m export.onnx checkpoints/$(MODEL).safetensors --repository model_repository

evaluate: $(DEV)/installed | $(FASHION_MNIST)  ## measure the shipped model on 10,000 images
	$(DEV)/bin/python -m training.evaluate model_repository/$(MODEL)/1 --vae checkpoints/$(MODEL).safetensors \
	  --out runs/evaluation --card model_repository/$(MODEL)/1/card.md

# --- packaging -------------------------------------------------------------------------------

constraints:  ## write constraints.txt anew from what pyproject.toml allows today
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install --quiet 'torch==$(TORCH)'
	.venv-constraints/bin/python -m pip install --quiet --editable '.[cpu,train,export,dev,tensorrt-rtx]'
	.venv-constraints/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//' > constraints.txt
	rm -rf .venv-constraints

wheel: $(DEV)/installed  ## build the wheel, the shipped model inside
	$(DEV)/bin/python -m build --wheel --no-isolation

wheel-check: $(DEV)/installed  ## build the wheel, install it in a clean environment, ask it for an image
	@$(DEV)/bin/python .ci/check_wheel.py

clean:  ## remove environments and caches; runs/, data/ and dist/ stay
	rm -rf $(SERVE) $(DEV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
