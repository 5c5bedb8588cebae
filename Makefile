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
HUB_TESTS = tests/inhub/test_register.py tests/staging/test_seed.py \
	$(wildcard tests/*/test_*on_a_hub.py) tests/cull/test_hundred_servers.py tests/cull/test_drop_in.py tests/prune/test_incidents.py \
	$(addprefix tests/e2e/test_,activity.py commands.py include.py service.py) \
	$(filter-out %_faults.py,$(wildcard tests/hub/test_*.py)) tests/prune/test_store.py tests/prune/test_offline.py tests/prune/test_web.py \
	$(addprefix tests/backends/test_,confirmed.py process.py) tests/proxy/test_client.py \
	tests/inhub/test_stop_hook.py tests/web/test_login.py tests/web/test_login_budget.py

# The long tier on the newest hub; all that has to do with a hub on the second version; and what needs no browser with every
# dependency at the lowest version that setup.cfg allows.
test-long: setup
	PATH="$(BIN):$$PATH" $(BIN)/$(PYTEST) -m long $(ARGS)
	@sh .ci/setup $(VENV_55) 'jupyterhub==5.5.*'
	PATH="$(CURDIR)/$(VENV_55)/bin:$$PATH" $(CURDIR)/$(VENV_55)/bin/$(PYTEST) $(HUB_TESTS) $(ARGS)
	@$(BIN)/python -c 'import configparser; c = configparser.ConfigParser(); c.read("setup.cfg"); \
	    print(c["options"]["install_requires"].strip().replace(">=", "=="))' >$(VENV)/lowest.txt
	@sh .ci/setup $(VENV_LOWEST) -c $(VENV)/lowest.txt
	PATH="$(CURDIR)/$(VENV_LOWEST)/bin:$$PATH" $(CURDIR)/$(VENV_LOWEST)/bin/$(PYTEST) tests --ignore tests/e2e --ignore tests/simulation --ignore-glob "*on_a_hub.py" --ignore-glob "*in_a_browser.py"
