# Two commands: `make demo` and `make test`. They need Python 3.10 or newer and nothing else of ours.
PYTHON ?= python3
VENV ?= .venv
VENV_55 ?= .venv-hub55
VENV_LOWEST ?= .venv-lowest
ARGS ?=
# Most tests wait for hubs and proxies: three at a time keep two cores busy, as long as none of the three has to wait for those
# that another has taken.
PYTEST = pytest -q -n 3 --dist worksteal --durations 30
BIN = $(CURDIR)/$(VENV)/bin
export PYTHON
# Where it is set, every hub and guard that a test starts compiles all that it imports: half of the time that they take.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: bench demo lint setup setup-55 setup-lowest test test-long test-quick test-55 test-lowest

setup:
	@sh .ci/setup $(VENV) 'jupyterhub>=6.1,<7'

demo: setup
	@PATH="$(BIN):$$PATH" $(BIN)/hubguard demo $(ARGS)

# ARGS="stop --quick", for instance; bench/README.md tells what there is.
bench: setup
	@PATH="$(BIN):$$PATH" $(BIN)/python -m bench.cull $(ARGS)

lint: setup
	@PATH="$(BIN):$$PATH" sh .ci/timed "lint" $(BIN)/pre-commit run --all-files

# Most tests wait, and meanwhile there is time to lint. What it has to say comes after the tests, and either failing fails.
test: setup
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; trap 'exit 130' INT TERM; \
	$(MAKE) --no-print-directory lint >"$$log" 2>&1 & lint=$$!; \
	ended=0; $(MAKE) --no-print-directory test-quick || ended=$$?; \
	wait $$lint || ended=$$?; cat "$$log"; exit $$ended

test-quick: setup
	@PATH="$(BIN):$$PATH" sh .ci/timed "make test" $(BIN)/$(PYTEST) -m "not long" $(ARGS)

# The long tier on the newest hub; all that starts a hub on the second version; and what touches our dependencies with each at
# the lowest version that setup.cfg allows.
test-long: setup
	@PATH="$(BIN):$$PATH" sh .ci/timed "the long tier" $(BIN)/$(PYTEST) -m long $(ARGS)
	@$(MAKE) --no-print-directory test-55 test-lowest

setup-55:
	@sh .ci/setup $(VENV_55) 'jupyterhub==5.5.*'

setup-lowest:
	@mkdir -p $(VENV_LOWEST)
	@sed -n '/^install_requires/,/^$$/s/^ *\(.*\)>=/\1==/p' setup.cfg >$(VENV_LOWEST)/lowest.txt
	@sh .ci/setup $(VENV_LOWEST) -c $(VENV_LOWEST)/lowest.txt

test-55: setup-55
	@PATH="$(CURDIR)/$(VENV_55)/bin:$$PATH" sh .ci/timed "JupyterHub 5.5" \
	    $(CURDIR)/$(VENV_55)/bin/$(PYTEST) -m "hub and not double" $(ARGS)

test-lowest: setup-lowest
	@PATH="$(CURDIR)/$(VENV_LOWEST)/bin:$$PATH" sh .ci/timed "the lowest versions" \
	    $(CURDIR)/$(VENV_LOWEST)/bin/$(PYTEST) -m "contract and not long" $(ARGS)
