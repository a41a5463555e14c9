# Two commands on a bare machine with Python 3.11 and make: `make repro` and `make test`.
# a shell of its own, so that the exported PATH holds for every recipe
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3.11
VENV ?= .venv

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
# dozens of processes start, and each would compile all that it imports
unexport PYTHONDONTWRITEBYTECODE
READY := $(VENV)/.ready
# the lock is complete, so that several can install parts of it side by side; -qq: errors only
PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check

.PHONY: help setup repro test quick lint docs site lab benchmark preset lock

help:  ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found; name another Python 3.11: make PYTHON=... "; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	grep -v '^#' requirements.txt | xargs -P 4 -n 30 $(PIP) --no-deps
	$(PIP) --no-deps -e .
	touch $@

setup: $(READY)  ## Virtual environment with the locked packages
	@test -e .git || dvc config --local core.no_scm true  # an archive has no .git, and DVC asks for it

# The demo's results are committed, but its weights are not: on a machine without them the demo is trained anew. Then the
# notebooks, of which none waits for another, are executed side by side, each on one thread. DVC's hints go to its standard output, which is
# dropped; what a reader needs goes to standard error. A stage that fails leaves its log in build/logs.
repro: setup  ## Train and show the study of params.yaml (by default the demo, from nothing); goes on where it stopped
	@if [ -n "$$CUTPASTE_DATA" ]; then for d in "$$CUTPASTE_DATA"/*/; do \
	    test -e "data/$$(basename "$$d")" || { mkdir -p data; ln -s "$$(realpath "$$d")" "data/$$(basename "$$d")"; }; done; fi
	@if [ -n "$$CUTPASTE_WEIGHTS" ]; then ln -sf "$$(realpath "$$CUTPASTE_WEIGHTS")"/*.safetensors weights/; fi
	@if grep -q '^study: demo ' params.yaml && ! test -d results/demo/arrays; then rm -rf results/demo/runs; fi
	@rm -rf build/logs && mkdir -p build/logs
	@started=$$SECONDS; study=$$(sed -nE 's/^study: *([^ ]*).*/\1/p' params.yaml); \
	{ dvc repro runs clean 2>&1 >/dev/null | tee -i build/logs/runs.log >&2 && rm build/logs/runs.log && \
	dvc stage list --name-only | grep @ | OMP_NUM_THREADS=1 xargs -P "$$(nproc)" -n 4 sh -c \
	    'dvc --wait-for-lock repro -s -k "$$@" || exit 1' sh && \
	dvc repro; } >/dev/null || \
	{ ls build/logs | sed -E 's|(.*)\.log|\1 failed: see build/logs/&. Once it is mended, `make repro` goes on|' | grep . >&2 || \
	    echo 'failed as told above. Once it is mended, `make repro` goes on' >&2; exit 1; } && \
	echo "done after $$(((SECONDS - started) / 60)) min $$(((SECONDS - started) % 60)) s: see results/$$study/notebooks, or make site"

# as many tests side by side as there are cores, each on one thread: more would only wait for each other
PYTEST := OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile

test: $(READY) lint  ## Lint and all tests
	$(PYTEST)

quick: $(READY) lint  ## Lint and the tests that take less than a few seconds each
	$(PYTEST) -m "not slow"

COG := python -m cogapp -I docs -p "from include import answer, notebooks, table" --verbosity=0

lint: $(READY)  ## Check style, that imports point one way, and that docs show the results as they are
	ruff check .
	ruff format --check .
	lint-imports --no-cache
	$(COG) --check --check-fail-msg="make docs renews it" README.md docs/*.md

docs: $(READY)  ## Put the tables of results into README.md and docs/
	$(COG) -r README.md docs/*.md

site: $(READY)  ## Show the committed results as a site: build/site/html/index.html
	python docs/site.py build/site/source
	sphinx-build -q -j auto -b html build/site/source build/site/html
	@echo "open build/site/html/index.html"

lab: $(READY)  ## Open JupyterLab on the notebooks
	jupyter lab notebooks

benchmark: $(READY)  ## Measure speed
	python -m pytest tests/benchmarks --benchmark-only --benchmark-disable-gc

preset: $(READY)  ## Make a preset the parameters of the study: make preset NAME=lite
	@python params/resolve.py $(NAME) >params.yaml.new && mv params.yaml.new params.yaml || { rm -f params.yaml.new; exit 1; }

lock:  ## Renew requirements.txt from the lower bounds in pyproject.toml
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet -e ".[study,dev]" torch==2.14.1 torchvision==0.29.1
	{ sed -n 1p requirements.txt; $(VENV)-lock/bin/python -m pip freeze --exclude-editable; } >requirements.txt.new
	mv requirements.txt.new requirements.txt && rm -rf $(VENV)-lock
