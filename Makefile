# `make run` and `make test` are all you need; each sets the environment up by itself. `make help` lists the rest.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

# dvc.yaml says `python -m components`: that is this repository's Python.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# uv does not read pip's find-links, where a machine may offer the CPU build of torch.
UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_FIND_LINKS
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false
export BENTOML_DO_NOT_TRACK := True
export OMP_NUM_THREADS := 1

# make run SOURCE=table LOG=my.csv COLUMNS=user_id=uid,item_id=sku,timestamp=ts
# From the command line only: many a shell exports COLUMNS, the width of its window.
option = $(if $(findstring command,$(origin $(1))),$(2) '$(subst ','\'',$(value $(1)))')
RUN_OPTIONS = $(call option,SOURCE,--source) $(call option,MODE,--mode) $(call option,LOG,--path) $(call option,QUERY,--query) $(call option,NIGHT,--night) $(call option,COLUMNS,--columns) \
	$(call option,TIMESTAMP_UNIT,--timestamp-unit) $(call option,ITEMS,--items) \
	$(call option,ITEM_COLUMNS,--item-columns) $(call option,SYNTHETIC,--synthetic) $(if $(REPLACE),--replace)

.PHONY: help setup run serve nightly benchmark test check format constraints

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Python 3.11 environment in .venv (done by itself when missing or outdated)

run: setup ## log -> validated, trained, evaluated, packaged model; SOURCE= LOG= COLUMNS= ITEMS= for your own log
	@$(PY) -m flows $(RUN_OPTIONS)

serve: setup ## serve the champion on http://localhost:3000; PORT=3000
	@$(PY) -m components serve $(call option,PORT,--port)

nightly: setup ## Prefect server, worker and the nightly deployment, until Ctrl-C; PORT=4200
	@$(PY) -m flows.nightly $(call option,PORT,--port)

benchmark: setup ## every model on every protocol: recipes/benchmark.yaml
	@$(PY) -m components use recipes/benchmark.yaml
	@$(PY) -m flows $(RUN_OPTIONS)

test: setup ## all tests, two files at a time; TESTS=tests/test_x.py
	@$(PY) -m pytest --numprocesses 2 --dist loadfile $(TESTS)

check: setup ## lint, format, types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: setup ## let ruff fix what it can
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

constraints: setup ## pin what pyproject.toml newly asks for; delete a line of constraints.txt first to upgrade it
	@{ sed -n '/^#/p' constraints.txt; \
	   printf 'pip\nuv\n' | UV_FIND_LINKS= $(VENV)/bin/uv pip compile pyproject.toml - --extra dev --extra s3 --quiet --python $(PY) \
	     --constraints constraints.txt --no-header --no-annotate --no-emit-index-url --no-emit-find-links; \
	 } > constraints.txt.new && mv constraints.txt.new constraints.txt

# python3.11 may be reachable as `python3` only.
FIND_PYTHON = for name in $${PYTHON:-} python3.11 python3 python; do \
	if "$$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then command -v "$$name"; break; fi; done

$(INSTALLED): pyproject.toml constraints.txt
	@python=$$($(FIND_PYTHON)); \
	if [ -z "$$python" ]; then \
	  echo "error: hstuflow needs Python 3.11, found $$(python3 --version 2>&1 || true). Install it, or name it: make setup PYTHON=/path/to/python3.11" >&2; \
	  exit 2; \
	fi; \
	[ -x $(PY) ] || { echo "setting up $(VENV) with $$python"; "$$python" -m venv $(VENV); }
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip uv
	@$(VENV)/bin/uv pip install --python $(PY) --requirement pyproject.toml --extra dev --constraint constraints.txt
	@touch $@
