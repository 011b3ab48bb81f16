# `make serve` and `make test` need Python 3.11 and make; they set up everything else themselves.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
SERVE  := .venv-serve
DEV    := .venv
TRITON := .triton
CHECKOV := .venv-checkov
MODEL  ?= fashion-32
RUN    ?= runs/$(MODEL)
TORCH  := 2.13.0
PIP    := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# about how long `make chaos` takes on a machine that is idle
CHAOS_MINUTES ?= 10
# the checkpoint that `make check-weights` looks at
FILE ?=

# Garment photographs, a Debian package: https://packages.debian.org/dataset-fashion-mnist
FASHION_MNIST := /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz
# The browser that tests of the playground drive: https://packages.debian.org/chromium-headless-shell
CHROMIUM := $(firstword $(shell which chromium-headless-shell chromium chromium-browser google-chrome 2>/dev/null) \
  /usr/bin/chromium-headless-shell)
# What tests of the alerts ask: https://packages.debian.org/prometheus. Unpacked, because installed it would run as a service.
PROMTOOL := $(firstword $(shell which promtool 2>/dev/null) .prometheus/usr/bin/promtool)

.DEFAULT_GOAL := help

.PHONY: help serve triton test test-all check docs format train evaluate experiment export gpu-check check-weights deploy-check chaos sbom constraints wheel wheel-check clean

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

# A real Triton for CPUs. Its python backend wants numpy 1 in the environment that it embeds: with numpy 2 this release
# corrupts tensors.
$(TRITON)/installed: pyproject.toml constraints.txt
	@echo "setting up Triton in $(TRITON)" >&2
	rm -rf $(TRITON) && mkdir $(TRITON)
	$(PYTHON) -m venv $(TRITON)/env
	$(TRITON)/env/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --target $(TRITON)/server nvidia-pytriton==0.7.0
	grep -v '^numpy==' constraints.txt > $(TRITON)/constraints.txt
	$(TRITON)/env/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(TRITON)/constraints.txt 'numpy<2' --editable '.[cpu]'
	cp $(TRITON)/server/pytriton/tritonserver/python_backend_stubs/$$($(TRITON)/env/bin/python -c \
	  'import sys; print("%d.%d" % sys.version_info[:2])')/triton_python_backend_stub \
	  $(TRITON)/server/pytriton/tritonserver/backends/python/
	touch $@

# In an environment of its own: it wants other versions of what the rest needs.
$(CHECKOV)/installed: deploy/checkov.txt
	@echo "setting up checkov in $(CHECKOV)" >&2
	$(PYTHON) -m venv $(CHECKOV)
	$(CHECKOV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement deploy/checkov.txt
	touch $@

$(FASHION_MNIST):
	@.ci/install-debian dataset-fashion-mnist

$(CHROMIUM):
	@.ci/install-debian chromium-headless-shell curl

$(PROMTOOL):
	@.ci/unpack-debian prometheus promtool .prometheus

# --- the two commands ------------------------------------------------------------------------

serve: $(SERVE)/installed  ## serve the model that ships in this repository on 127.0.0.1:8000
	@exec $(SERVE)/bin/cat-serve serve

triton: $(DEV)/installed $(TRITON)/installed  ## serve the same repository with a real Triton (gRPC on 8001)
	@exec $(DEV)/bin/python -m export.triton_server --repository model_repository

test: $(DEV)/installed $(TRITON)/installed | $(FASHION_MNIST) $(CHROMIUM) $(PROMTOOL)  ## run the quick test suite
	$(DEV)/bin/python -m pytest -m 'not slow'

test-all: $(DEV)/installed $(TRITON)/installed | $(FASHION_MNIST) $(CHROMIUM) $(PROMTOOL)  ## run every test, the slow ones too
	$(DEV)/bin/python -m pytest

check: $(DEV)/installed  ## formatting, lint, types, import rules, Dockerfile, manifests, then the tests
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/ruff check .
	$(DEV)/bin/mypy
	$(DEV)/bin/lint-imports
	$(DEV)/bin/hadolint Dockerfile
	$(MAKE) deploy-check
	$(MAKE) test

deploy-check: $(DEV)/installed $(CHECKOV)/installed  ## render the Kubernetes manifests and lint them
	@rm -rf $(CHECKOV)/rendered && mkdir $(CHECKOV)/rendered
	@set -e; for each in deploy/k8s/overlays/* deploy/k8s/loader; do \
	  $(DEV)/bin/kubectl kustomize $$each > $(CHECKOV)/rendered/$$(basename $$each).yaml; done
	$(CHECKOV)/bin/checkov --config-file deploy/checkov.yaml --directory $(CHECKOV)/rendered

docs: $(DEV)/installed  ## write the references in docs/ from the code: routes, settings, metrics
	$(DEV)/bin/python -m docs.reference

chaos: $(DEV)/installed $(TRITON)/installed  ## bad days on purpose: load, faults, abuse; CHAOS_MINUTES=60 for longer
	@$(DEV)/bin/python -m benchmarks.chaos --minutes $(CHAOS_MINUTES) --document docs/reliability.md

format: $(DEV)/installed  ## format the code
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

# --- the model -------------------------------------------------------------------------------

train: $(DEV)/installed | $(FASHION_MNIST)  ## train VAE and generator again; interrupted runs go on
	$(DEV)/bin/python -m training.train_vae --latent-channels 8 --kl-weight 1e-4 --total-nimg 200000 --out $(RUN)/vae
	$(DEV)/bin/python -m training.prepare --vae $(RUN)/vae --out data/$(MODEL)
	$(DEV)/bin/python -m training.train --preset $(MODEL) --data data/$(MODEL) --vae $(RUN)/vae --run $(RUN)

export: $(DEV)/installed  ## export checkpoints/MODEL.safetensors into model_repository/, for Triton too
	$(DEV)/bin/python -m export.onnx checkpoints/$(MODEL).safetensors --repository model_repository
	$(DEV)/bin/python -m export.triton model_repository

evaluate: $(DEV)/installed | $(FASHION_MNIST)  ## measure the shipped model on 10,000 images
	$(DEV)/bin/python -m training.evaluate model_repository/$(MODEL)/1 --vae checkpoints/$(MODEL).safetensors \
	  --out runs/evaluation --card model_repository/$(MODEL)/1/card.md

check-weights: $(DEV)/installed  ## images, figures and parity of an imported checkpoint, a report to paste: FILE=checkpoints/...
	@test -n '$(FILE)' || { echo 'error: name the checkpoint: make check-weights FILE=checkpoints/NAME.safetensors' >&2; exit 2; }
	@$(DEV)/bin/python -m export.check_weights '$(FILE)'

experiment: $(DEV)/installed | $(FASHION_MNIST)  ## docs/experiments/cat-claims.md in small: three arms, 9,600 images each, minutes
	$(DEV)/bin/python -m training.prepare --vae checkpoints/fashion-32.vae --out data/experiment
	$(DEV)/bin/python -m training.experiment --out runs/experiment-quick --total-nimg 9600 --every-nimg 3200 \
	  --only small-cat-0 small-lambda-0-0 small-aggregated-0 --samples 500 --photographs 2000 --metrics pairs fd manifolds

gpu-check: $(DEV)/installed  ## on a machine with an NVIDIA GPU: engines, parity, latency, Triton; prints a report
	@! command -v nvidia-smi >/dev/null || $(DEV)/bin/python $(PIP) --editable '.[tensorrt]'
	@$(DEV)/bin/python -m export.gpu_check

# --- packaging -------------------------------------------------------------------------------

constraints:  ## write constraints.txt anew from what pyproject.toml allows today
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install --quiet 'torch==$(TORCH)'
	.venv-constraints/bin/python -m pip install --quiet --editable '.[cpu,train,export,dev]'
	.venv-constraints/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//' > constraints.txt
	rm -rf .venv-constraints

wheel: $(DEV)/installed  ## build the wheel, the shipped model inside
	$(DEV)/bin/python -m build --wheel --no-isolation

wheel-check: $(DEV)/installed  ## build the wheel, install it in a clean environment, ask it for an image
	@$(DEV)/bin/python .ci/check_wheel.py

sbom: $(SERVE)/installed $(DEV)/installed  ## list what the serving environment is made of, with licences, as CycloneDX
	@mkdir -p build
	$(DEV)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --validate \
	  --output-file build/sbom.cdx.json $(SERVE)/bin/python
	@$(DEV)/bin/python .ci/check_sbom.py build/sbom.cdx.json

clean:  ## remove environments and caches; runs/, data/ and dist/ stay
	rm -rf $(SERVE) $(DEV) $(TRITON) $(CHECKOV) .prometheus .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
