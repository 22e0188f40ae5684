# Everything is done from here; a Python of at least 3.11 is all that must be there. `make help` lists the targets.
#
# Packages come from lock files with hashes (`make lock` writes them), so that everybody runs the same. The project
# itself needs no build: a path file makes the checkout importable.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes
COMPILE := $(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
	--custom-compile-command "make lock"

BROKER ?=
SEEDS ?= 10000
SAGAS ?= 500
KILLS ?= 20
SECONDS ?= 60
NODES ?= 1
RECORDS ?= 10000
SEED ?=
PYTEST_ARGS ?=
QUICK ?=
DOCS ?=
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo check lint test simulate mutants crash-points chaos fuzz semantics bench kafka kustomize \
	audit-deps sbom schemas lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1 \t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(VENV)/runtime.stamp  ## make .venv with what choreo needs to run

setup-dev: $(VENV)/dev.stamp  ## … and with what tests and linters need

demo: setup  ## watch an order saga, its services and a kill -9 (BROKER=kafka: over a local Kafka)
	$(VENV)/bin/choreo demo $(if $(BROKER),--broker $(BROKER))

check: setup-dev lint  ## linters, types and unit tests: what to run before every commit
	$(RUN) -m pytest -q --numprocesses auto tests/unit $(PYTEST_ARGS)

lint: setup-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test: setup-dev lint $(if $(filter-out 0,$(CHOREO_REQUIRE_BROWSER)),browser) $(if $(filter-out 0,$(CHOREO_REQUIRE_PROMTOOL)),promtool)  ## linters and all tests; those that need a Kafka get one if it can be had
	$(RUN) -m pytest $(PYTEST_ARGS)

.PHONY: metrics-page
metrics-page: setup  ## write docs/metrics.md from the table of metrics
	$(RUN) -m deploy.metrics_page

.PHONY: promtool browser screenshots
promtool:  ## get promtool for the tests of the alerts, where there is none (Debian and its kin)
	@deploy/install_promtool.sh

browser:  ## install a Chromium for the tests of the dashboard, where there is none (Debian and its kin, as root)
	@deploy/install_chromium.sh

screenshots: setup-dev browser  ## take the docs' pictures of the dashboard again
	$(RUN) -m tests.browser.screenshots

simulate: setup-dev  ## many seeds of the simulation: everything goes wrong, in virtual time (SEEDS=10000)
	$(RUN) -m tests.simulation --seeds $(SEEDS) --report build/simulation.json

mutants: setup-dev  ## break the code on purpose, in every way that is listed: each has to be found out
	$(RUN) -m tests.mutants --report build/mutants.json

chaos: setup-dev  ## kill, freeze, scale, cut off real processes over a real Kafka (SAGAS KILLS SECONDS NODES SEED)
	$(RUN) -m tests.chaos --sagas $(SAGAS) --kills $(KILLS) --seconds $(SECONDS) --nodes $(NODES) $(if $(SEED),--seed $(SEED))

crash-points: setup-dev  ## kill services and saga-log at every point of small sagas, and at every two (hours on one core)
	$(RUN) -m tests.crash_points --pairs --report build/crash-points.json

fuzz: setup-dev  ## malformed records among sagas that run (RECORDS=10000, BROKER=kafka for a Kafka of its own)
	$(RUN) -m tests.fuzz --records $(RECORDS) $(if $(BROKER),--broker $(BROKER)) $(if $(SEED),--seed $(SEED))

semantics: setup-dev  ## the table of what choreo means, run
	$(RUN) -m tests.semantics

bench: setup-dev  ## measure choreo beside the limits of its wire, over a local Kafka (QUICK=1: a few minutes; DOCS=1: write the page)
	$(RUN) -m benchmarks $(if $(BROKER),--broker $(BROKER)) $(if $(QUICK),--quick) $(if $(DOCS),--docs) $(BENCH_ARGS)

.PHONY: scale
scale: setup-dev  ## write docs/scale.md from the costs that the benchmark measured last
	$(RUN) -m benchmarks.scale

kafka:  ## run a local Kafka in the foreground (needs Java 17 and Maven, no containers)
	$(PYTHON) deploy/kafka/local_kafka.py run

kustomize:  ## build kustomize, which puts the Kubernetes manifests together (needs Go)
	GOBIN=$(CURDIR)/.choreo/tools go install sigs.k8s.io/kustomize/kustomize/v5@v5.7.1

audit-deps: setup-dev  ## hold the locked packages against the known vulnerabilities
	$(VENV)/bin/pip-audit --disable-pip --require-hashes --progress-spinner off -r requirements/image.lock

sbom: setup-dev  ## list what is shipped in build/sbom.json (CycloneDX)
	@mkdir -p build
	$(VENV)/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON \
		-o build/sbom.json requirements/image.lock

schemas: setup  ## write the JSON Schemas of all records
	$(RUN) -m schemas.generate

lock: setup-dev  ## resolve the newest packages that pyproject.toml allows
	$(COMPILE) --upgrade pyproject.toml --extra sqlalchemy --output-file requirements/runtime.lock
	$(COMPILE) --upgrade pyproject.toml --extra sqlalchemy --extra postgres --extra security --extra compression \
		--constraint requirements/runtime.lock --output-file requirements/image.lock
	$(COMPILE) --upgrade pyproject.toml --group dev --constraint requirements/runtime.lock \
		--output-file requirements/dev.lock

clean:  ## remove what was made here, the local Kafka's jars included
	rm -rf $(VENV) .choreo .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN):
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer was found; install one, or say make PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/runtime.stamp: requirements/runtime.lock | $(RUN)
	$(INSTALL) --requirement requirements/runtime.lock
	$(RUN) -c 'import pathlib, sysconfig; \
		pathlib.Path(sysconfig.get_path("purelib"), "choreo.pth").write_text(f"{pathlib.Path.cwd()}\n")'
	printf '#!%s\nimport sys\n\nfrom choreo.cli import main\n\nsys.exit(main())\n' "$(CURDIR)/$(RUN)" > $(VENV)/bin/choreo
	chmod +x $(VENV)/bin/choreo
	@touch $@

$(VENV)/dev.stamp: requirements/dev.lock $(VENV)/runtime.stamp
	$(INSTALL) --requirement requirements/dev.lock
	@touch $@
