# Thin: each line calls a tool. `.ci/setup` installs what is missing and says what it does.
PY := .venv/bin/python
BIN := .venv/bin

.PHONY: help demo test check bench lab lock wheel clean setup setup-demo setup-test setup-bench

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

bench: setup-bench ## the agent at rest, ingest, capacity, accuracy: beside iperf3, curl, ping, fping, irtt (ARGS="--only accuracy")
	$(PY) tests/benchmarks/run.py $(ARGS)

lab: setup-demo ## emulated lines measured, configured against measured; ARGS="run 4g_edge capacity" (as root)
	@$(BIN)/fleet-controller lab $(or $(ARGS),matrix)

wheel: setup ## build the wheel into dist/, install it into a new environment, start both commands
	.ci/wheel

lock: setup ## write requirements.lock anew from pyproject.toml
	.ci/lock

setup:
	@.ci/setup
setup-demo:
	@.ci/setup mosquitto influxd dnsmasq ip
setup-test:
	@.ci/setup mosquitto influxd dnsmasq ip nginx ping iperf3 openssl unbound

setup-bench: setup-test
	@.ci/setup curl fping irtt

clean: ## remove what the other targets made here
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
