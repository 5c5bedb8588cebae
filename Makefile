# Two commands: `make demo` and `make test`. They need Python 3.10 or newer and nothing else of ours.
PYTHON ?= python3
VENV ?= .venv
VENV_55 ?= .venv-hub55
VENV_LOWEST ?= .venv-lowest
ARGS ?=
# Most tests wait for hubs and proxies: three at a time keep two cores busy, as long as none of the three has to wait for those
# that another has taken.
PYTEST = pytest -q -n 3 --dist worksteal --durations 15
BIN = $(CURDIR)/$(VENV)/bin
export PYTHON

.PHONY: bench demo test test-long lint setup

setup:
	@sh .ci/setup $(VENV) 'jupyterhub>=6.1,<7'

demo: setup
	@PATH="$(BIN):$$PATH" $(BIN)/hubguard demo $(ARGS)

# ARGS="stop --quick", for instance; bench/README.md tells what there is.
bench: setup
	@PATH="$(BIN):$$PATH" $(BIN)/python -m bench.cull $(ARGS)

lint: setup
	PATH="$(BIN):$$PATH" $(BIN)/pre-commit run --all-files

test: lint
	PATH="$(BIN):$$PATH" $(BIN)/$(PYTEST) -m "not long" $(ARGS)

# What a second hub version may answer differently to. What has no hub, or is about our own pages, isn't tried twice.
HUB_TESTS = tests/unit/test_register.py tests/unit/test_seed.py tests/unit/test_stop_hook.py \
	$(filter-out %_page.py %_pages.py %/test_kill.py %/test_refresh.py %/test_wheel.py,$(wildcard tests/e2e/test_*.py)) \
	$(filter-out %/test_backends.py %_docker.py %_http.py %_kubernetes.py %_systemd.py %/test_canary.py %_faults.py \
	    %/test_journal.py %/test_web.py %/test_web_drift.py,$(wildcard tests/contract/test_*.py))

# The long tier on the newest hub; all that has to do with a hub on the second version; and what needs no browser with every
# dependency at the lowest version that setup.cfg allows.
test-long: setup
	PATH="$(BIN):$$PATH" $(BIN)/$(PYTEST) -m long $(ARGS)
	@sh .ci/setup $(VENV_55) 'jupyterhub==5.5.*'
	PATH="$(CURDIR)/$(VENV_55)/bin:$$PATH" $(CURDIR)/$(VENV_55)/bin/$(PYTEST) $(HUB_TESTS) $(ARGS)
	@$(BIN)/python -c 'import configparser; c = configparser.ConfigParser(); c.read("setup.cfg"); \
	    print(c["options"]["install_requires"].strip().replace(">=", "=="))' >$(VENV)/lowest.txt
	@sh .ci/setup $(VENV_LOWEST) -c $(VENV)/lowest.txt
	PATH="$(CURDIR)/$(VENV_LOWEST)/bin:$$PATH" $(CURDIR)/$(VENV_LOWEST)/bin/$(PYTEST) tests/unit tests/contract tests/migration
