# Two commands for users (`make run`, `make test`), the rest for those who change the code. `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PEERS  := .bench-peers
CLIENTS := .example-clients
ARGS   ?=
JOBS   ?= 4
PYTEST := $(BIN)/pytest -n $(JOBS) --dist worksteal

# JOBS: much of the time of a test is waiting, so there are more processes than a small machine has processors.
# Tests start many processes: the code that they share is compiled once, also where the environment says otherwise.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help run test test-slow check unit sim properties lint fmt bench bench-peers clients proto parameters clean

help: ## List the targets of this file.
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name says; do printf '%-11s %s\n' "$$name" "$$says"; done
	@echo
	@echo "ARGS=... is passed on to the program of a target: make unit ARGS='-k test_h9_ -x'"

run: $(VENV)/.run ## Serve on 127.0.0.1:8080 with the configuration of this folder.
	exec $(BIN)/gateway serve $(ARGS)

# Many files, in the order of tests/order.py: each process takes the next one. The other targets run few files, and share
# out the tests of each.
test: $(VENV)/.dev ## Run every test except those that take minutes.
	$(PYTEST) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(VENV)/.dev ## Run the tests that take minutes.
	$(PYTEST) -m slow $(ARGS)

check: lint ## Check what a change must pass before it is pushed: lint, types, house rules, documents, unit tests.
	$(PYTEST) tests/unit $(wildcard tests/test_*.py) $(ARGS)

unit: $(VENV)/.test ## Run the unit tests; modules that need llama.cpp are skipped if it is not installed.
	$(PYTEST) tests/unit $(ARGS)

sim: $(VENV)/.dev ## Run the simulated fleets; SEED=123 replays one run.
	$(PYTEST) tests/simulation $(ARGS)

properties: $(VENV)/.dev ## Try each property with all its examples, of which the other targets try a part.
	EXAMPLES=100 $(PYTEST) -m 'hypothesis and not slow' $(ARGS)

lint: $(VENV)/.dev ## Check format, style and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fmt: $(VENV)/.dev ## Format the code and repair what ruff can repair.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## Measure what the gateway costs and adds, picks, routing; ARGS='serving --section unary' only some of it.
	$(BIN)/python -m bench $(ARGS)

bench-peers: $(VENV)/.dev $(PEERS)/.installed ## Measure other gateways beside ours; installs them into .bench-peers.
	$(BIN)/python -m bench serving --peers $(PEERS) $(ARGS)

# Two environments, since they want different versions of the same packages. Without LiteLLM the others are measured.
$(PEERS)/.installed:
	$(PYTHON) -m venv $(PEERS)/routers
	-$(PEERS)/routers/bin/pip install -q --disable-pip-version-check vllm-router sglang-router smg
	$(PYTHON) -m venv $(PEERS)/litellm
	-$(PEERS)/litellm/bin/pip install -q --disable-pip-version-check 'litellm[proxy]'
	@touch $@

clients: $(VENV)/.dev $(CLIENTS)/.installed ## Install the client libraries that examples/clients/ uses.

# Without npm the clients for Node are not installed, and their tests say so.
$(CLIENTS)/.installed: examples/clients/requirements.txt examples/clients/node/package-lock.json
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install -q --disable-pip-version-check -r examples/clients/requirements.txt
	-npm ci --prefix examples/clients/node --no-audit --no-fund
	@touch $@

# tests/test_generated_code.py fails when the generated code is stale.
proto: $(VENV)/.dev ## Generate the protobuf code from proto/.
	$(BIN)/python scripts/generate_proto.py

# tests/unit/api/openai/test_parameter_table.py fails when the page is stale.
parameters: $(VENV)/.dev ## Generate docs/parameters.md from the table of parameters.
	$(BIN)/python -m scripts.generate_parameters

clean: ## Remove the environment and all caches.
	rm -rf $(VENV) $(PEERS) $(CLIENTS) examples/clients/node/node_modules build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# install EXTRAS: makes the environment if it is not there, and installs the gateway with these extras into it.
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gateway needs Python 3.11 or newer; set PYTHON=..." >&2; exit 2; }
$(PYTHON) -m venv $(VENV)
$(BIN)/pip install -q --disable-pip-version-check -e '.[$(1)]'
endef

$(VENV)/.run: pyproject.toml
	$(call install,llama)
	@touch $@

$(VENV)/.test: pyproject.toml
	$(call install,test)
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(call install,dev)
	@touch $@ $(VENV)/.test $(VENV)/.run
