# Thin: each line calls a tool. `.ci/setup` installs what is missing and says what it does.
PY := .venv/bin/python
BIN := .venv/bin

.PHONY: help demo test check bench lock wheel clean setup setup-demo setup-test

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: setup-demo ## probes measure real links; what they measured is read back from InfluxDB
	@$(BIN)/fleet-controller demo $(ARGS)

test: setup-test ## every test, against the real broker, database, resolver and namespaces
	$(PY) -m pytest $(ARGS)

check: setup ## format, lint, types, import rules, lock file
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	.ci/lock --check

bench: setup-test ## the agent at rest, the peer and the ingest path, side by side with a peer
	$(PY) tests/benchmarks/run.py $(ARGS)

wheel: setup ## build the wheel, install it into a new environment, start both commands
	.ci/wheel

lock: setup ## write requirements.lock anew from pyproject.toml
	.ci/lock

setup:
	@.ci/setup
setup-demo:
	@.ci/setup mosquitto influxd dnsmasq ip
setup-test:
	@.ci/setup mosquitto influxd dnsmasq ip nginx ping iperf3 openssl

clean: ## remove what the other targets made here
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
