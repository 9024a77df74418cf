# `make demo` and `make test` do all of their own set-up: a virtual environment in .venv, filled by plain pip.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export WANDB_MODE ?= offline

.DEFAULT_GOAL := help
.PHONY: demo test test-fast docs lint format clean help

$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing explainode and what it needs into $(VENV) (once; a few minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the test tools into $(VENV) (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-dev
	@echo "installing what the documentation needs into $(VENV) (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@touch $@

demo: $(VENV)/.installed  ## train a small ResNet and its noise-injected twin, explain both, write report.html
	@$(BIN)/explainode demo

test: $(VENV)/.installed-dev  ## run the whole test suite
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST)

test-fast: $(VENV)/.installed-dev  ## run the tests that take seconds
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not ddp"

docs: $(VENV)/.installed-docs  ## build the documentation site into build/site, without network
	@$(BIN)/python -m sphinx -W --keep-going -q -d build/doctrees docs build/site
	@echo "open build/site/index.html"

lint: $(VENV)/.installed-dev  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.installed-dev  ## let ruff format and mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove the environment, caches and build products (runs/ stays)
	@rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 12
