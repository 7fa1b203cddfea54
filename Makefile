# Verbs of Enginehouse. Caches (virtual environments, Kubernetes binaries, images, models) live in $(CACHE), never in the tree.
CACHE := $(or $(ENGINEHOUSE_CACHE),$(HOME)/.cache/enginehouse)
PYTHON ?= python3
VENV := $(CACHE)/venv-$(shell cat locks/uv.txt locks/dev.txt | sha256sum | cut -c1-12)
RUN := env PYTHONPATH=operator:engine_image:tests $(VENV)/bin/python
PYTEST := $(RUN) -m pytest

.PHONY: help setup built check fix test proof demo demo-down bench images generate lock clean
help:           ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(VENV)/ready ## the development environment, from the lock files
	@ln -sfn $(VENV) .venv
# Its name holds the hash of the lock files: one that is there is the right one, however new the files of this clone are.
$(VENV)/ready:
	@echo "making $(VENV): about 6 GB, a minute or two on a fast line"
	@locks/install.sh $(PYTHON) $(VENV)
	@touch $@

check: setup    ## lint, format, types, layers
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	env MYPYPATH=operator:engine_image:tests $(VENV)/bin/mypy
	env PYTHONPATH=operator:engine_image:tests $(VENV)/bin/lint-imports

fix: setup      ## repair what ruff can repair
	$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .

# What takes minutes is built before the tests, each of which has 300 seconds.
built: setup
	@$(RUN) -m localkube build >/dev/null
	@$(RUN) -m localkube images >/dev/null
	@$(RUN) -c 'import promtool; promtool.built()'

test: check built ## everything that needs no GPU: unit, contract, real apiserver, real kubelet
	$(PYTEST) -m "not slow and not gpu" --numprocesses 2

proof: check built ## the long matrices, soaks and version sweeps
	$(PYTEST) -m "slow or not slow"
	env --unset CI $(PYTEST) -m hypothesis tests/unit # where CI is set, the examples are always the same
	$(PYTEST) -m api --kubernetes 1.35 tests/api tests/charts
	$(PYTEST) -m api --kubernetes 1.36 tests/api tests/charts

demo: setup     ## a Kubernetes, the operator, a model, an answer
	$(RUN) examples/demo.py up

demo-down: setup ## remove everything the demo made, but the caches
	$(RUN) examples/demo.py down

bench: setup    ## figures beside a peer: make bench NAME=engine (or apply, death, executor, queue, refusal, scale)
	$(RUN) tests/bench/$(patsubst queue,message_queue,$(NAME)).py # a file queue.py would stand before the standard library's

images: setup   ## build both images
	$(RUN) -m localkube images

generate: setup ## everything that is generated and checked in
	$(RUN) charts/generate.py

lock:           ## write the lock files again after a change of pyproject.toml
	locks/build.sh

clean: demo-down
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
