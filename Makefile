# Everything a contributor types. `make` alone lists it. The environment is .venv in this folder.
VENV   ?= .venv
PORT   ?= 8000
RECIPE ?= edge_web_frames
ARGS   ?=

# Python 3.11 is what the tests run on; newer ones are accepted. `make setup PYTHON=/path/to/python3` chooses.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)

BIN     := $(VENV)/bin
SECRETS := deploy/compose/secrets
COMPOSE := --file deploy/compose/compose.yaml $(if $(AUDIT),--file deploy/compose/audit.yaml)
SIDE_BY_SIDE := -n $(shell nproc 2>/dev/null || echo 2) --dist loadfile
FULL    := $(VENV)/.surgseg-full
SERVICE := $(VENV)/.surgseg-service
PINS    := pyproject.toml constraints.txt
CODE    := service training model_export docker deploy tests

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-service demo up down test test-fast check format bench train constraints clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(FULL) ## build the whole environment in .venv (quick when nothing changed)

# The full environment contains the service's: when it is there, it is the one to keep up to date.
setup-service: $(if $(wildcard $(FULL)),$(FULL),$(SERVICE)) ## build only what the service needs: no torch

demo: setup-service ## serve the viewer and the shipped bundle (PORT=8000)
	@$(BIN)/surgseg serve --port $(PORT) $(ARGS) || test $$? -eq 130

up: $(SECRETS)/service/tokens $(SECRETS)/grafana_password ## start the service, Prometheus and Grafana in containers (docs/operations.md)
	docker compose $(COMPOSE) up --detach --build --wait $(ARGS)

down: ## stop those containers; what they have stored stays
	docker compose $(COMPOSE) down $(ARGS)

# The service's tests run one after the other, because they start servers and wait for clocks; the others side by side, a
# process to a core. PyTorch's have processes of their own: one in which OpenVINO had been opened hundreds of times before
# them ended with a crash, once (docs/caveats.md). Exit code 5 says that the words of ARGS chose nothing of that part.
test: setup ## run every test (ARGS='-k words' to choose)
	$(BIN)/python -m pytest --ignore=tests/training --ignore=tests/model_export --ignore=tests/contracts $(ARGS) || test $$? -eq 5
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/contracts tests/model_export $(ARGS) || test $$? -eq 5
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/training $(ARGS) || test $$? -eq 5

test-fast: setup ## run the tests that take moments and need no browser
	$(BIN)/python -m pytest -q -m "not slow and not browser and not prometheus and not gpu" $(ARGS)

check: setup ## format, lint, types, import contracts, fast tests: what a change must pass
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory test-fast

format: setup ## rewrite the code in the house style
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

bench: setup-service ## measure the real pipeline: percentiles per stage, drops, frames per second
	$(BIN)/surgseg bench $(ARGS)

train: setup ## train a network (RECIPE=edge_web_frames)
	$(BIN)/surgseg-train run $(RECIPE) $(ARGS)

constraints: $(FULL) ## pin every dependency again, at its newest, in constraints.txt
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --no-emit-index-url --no-emit-find-links \
		--no-annotate --no-header --extra cpu --extra export --extra ray --extra dev pyproject.toml -o constraints.txt

clean: ## delete the environment, the caches and build leftovers
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Containers read these files as users of their own, so the folder is what keeps others of this machine out.
$(SECRETS):
	@mkdir -m 700 $@

$(SECRETS)/service: | $(SECRETS)
	@mkdir -m 755 $@

$(SECRETS)/grafana_password $(SECRETS)/service/view-token: | $(SECRETS)/service
	@head -c 24 /dev/urandom | base64 | tr '+/' '-_' > $@
	@chmod 444 $@

# The service keeps of a token its hash; the first is for Prometheus and for the health check.
$(SECRETS)/service/tokens: | $(SECRETS)/service/view-token
	@printf 'prometheus view sha256:%s\n' "$$(tr -d '\n' < $(@D)/view-token | sha256sum | cut -c 1-64)" > $@
	@chmod 444 $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found. Install one, or name it: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is not Python 3.11 or newer. Name one that is: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment. On Debian: apt-get install python3-venv" >&2; exit 1; }

$(FULL): EXTRAS := cpu,export,dev
$(SERVICE): EXTRAS := cpu
$(FULL) $(SERVICE): $(PINS) | $(BIN)/python
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv || echo "uv could not be installed; pip does the same, more slowly."
	@if test -x $(BIN)/uv; then \
		$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]'; \
	else \
		$(BIN)/python -m pip install -c constraints.txt -e '.[$(EXTRAS)]'; \
	fi
	@touch $@
