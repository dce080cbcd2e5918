# Everything runs in one virtual environment, made by the first target that needs it.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/fashion_mnist/locoprop_s_whitened.yaml
ARGS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.docs-installed
AUDIT := $(VENV)/audit
AUDIT_INSTALLED := $(AUDIT)/.installed
AUDIT_TOOLS := cyclonedx-bom pip-audit pip-licenses uv
# Side by side, each on one thread.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal
GET_DATA = PYTHON="$(BIN)/python" bash scripts/get_fashion_mnist.sh data

.DEFAULT_GOAL := help
.PHONY: help env data train test test-fast soak lint types docs lock audit release clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PYTHON=$(PYTHON)  VENV=$(VENV)"
	@echo "  CONFIG=$(CONFIG)  ARGS='--trainer.max_epochs 1'  PYTEST_ARGS='-k loader'"

env: $(INSTALLED) ## make the virtual environment and install the package with its development tools

# The stamp goes first and comes back last, so that an interrupted install is done again.
# torch and torchvision are left to one plain `pip install`: builds of different origin do not work together.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "PYTHON=$(PYTHON) is not a working Python 3.11 or newer: name one, as in 'make PYTHON=python3.11 ...'." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "PYTHON=$(PYTHON) has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv) or name another Python, as in 'make PYTHON=python3.11 ...'." >&2; exit 1; }
	$(PYTHON) -m venv "$(VENV)"
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

data: $(INSTALLED) ## get Fashion-MNIST (30 MB) unless it is there already
	@$(GET_DATA)

train: $(INSTALLED) ## train with CONFIG (a YAML file) and ARGS (further arguments of `locoprop fit`)
	@$(if $(findstring fashion_mnist,$(CONFIG)),$(GET_DATA))
	$(BIN)/locoprop fit --config $(CONFIG) $(ARGS)

test: lint types ## lint, types, then the tests and the examples in docstrings
	@$(GET_DATA) || echo "Going on without Fashion-MNIST: the tests that need it are skipped." >&2
	$(PYTEST) -m "not soak" $(PYTEST_ARGS)

test-fast: $(INSTALLED) ## the tests that start no cluster, browser or other process, and train for a moment at most
	$(PYTEST) -m "not processes and not slow and not soak" $(PYTEST_ARGS)

soak: $(INSTALLED) ## what takes hours: every configuration killed and resumed, 20,000 steps, a sweep of 200 trials
	$(BIN)/python -m pytest -m soak -s $(PYTEST_ARGS)

lint: $(INSTALLED) ## style and formatting (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## static types (mypy)
	$(BIN)/mypy

# Sphinx is no tool of the tests, and comes when the site is first built.
$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[docs]'
	@touch $@

docs: $(DOCS_INSTALLED) ## build the documentation site, in build/docs; warnings are errors
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -j auto -c docs -d build/doctrees . build/docs
	@echo "build/docs/index.html"

# Its tools are no one else's, and have an environment of their own.
$(AUDIT_INSTALLED): setup.cfg
	$(PYTHON) -m venv "$(AUDIT)"
	$(AUDIT)/bin/python -m pip install --quiet --constraint constraints.txt $(AUDIT_TOOLS)
	@touch $@

lock: $(AUDIT_INSTALLED) ## write constraints.txt anew for setup.cfg; ARGS=--upgrade takes newer versions
	$(AUDIT)/bin/uv pip compile setup.cfg --universal --python-version 3.11 --all-extras --no-annotate --quiet \
	  --custom-compile-command 'make lock' --output-file constraints.txt $(ARGS)

audit: $(INSTALLED) $(AUDIT_INSTALLED) ## known weaknesses of what is locked, licences and bill of materials in build/audit
	@mkdir -p build/audit
	$(AUDIT)/bin/pip-licenses --python "$(BIN)/python" --from mixed --format markdown --order license --output-file build/audit/licences.md
	$(AUDIT)/bin/cyclonedx-py environment "$(BIN)/python" --output-file build/audit/sbom.cdx.json
	$(AUDIT)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict
release: $(INSTALLED) ## rehearse a release: build wheel and sdist, check them, run the wheel in a clean environment
	PYTHON="$(abspath $(BIN))/python" bash scripts/release_rehearsal.sh

clean: ## remove caches and build products; environment, data and runs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -path "./$(VENV)" -prune -o -type d -name __pycache__ -exec rm -rf {} +
