# One word each. `make demo` and `make test` need only Python >= 3.11 and make; both set up .venv on their first call.
# GNU make 3.81 (macOS) and POSIX sh.

VENV := .venv
RELEASE := .venv-release
BIN := $(VENV)/bin
SETUP := sh tools/setup.sh $(VENV)
ARGS ?=

# What is compiled is kept, whatever the environment says: tests alone start hundreds of processes that import configi.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo serve test test-slow test-node test-clients check bench soak hostile docs docs-tables lock audit sbom clean

demo: $(VENV)/.run
	@$(BIN)/configi demo $(ARGS)

serve: $(VENV)/.run
	@$(BIN)/configi serve $(ARGS)

# In parallel, since every test has its own folders, ports and processes. Four also on two cores: many tests wait.
# Threads of OpenBLAS (MLX on Linux) would spin on the cores of the others.
test: $(VENV)/.dev
	@OPENBLAS_NUM_THREADS=1 $(BIN)/pytest --numprocesses 4 --dist worksteal $(ARGS)

# The 93 MB embedded model, and what takes minutes.
test-slow: $(VENV)/.dev $(VENV)/.docs
	@$(BIN)/pytest -m slow $(ARGS)

# The OpenAI Node SDK against a demo server; needs Node and npm.
test-node: $(VENV)/.run
	@$(BIN)/python -m tools.test_node

# Installs other people's clients, the newest versions, and drives them; ARGS="-k codex" only those. Needs the network, npm
# and some gigabytes for a while. The table of docs/clients.md is made of what they could do.
test-clients: $(VENV)/.dev
	@$(BIN)/pytest tests/clients -m "clients or not clients" --record $(ARGS); status=$$?; $(BIN)/python -m tools.docs_tables; exit $$status

check: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Each command writes below bench/results/; the last two make the pictures and tables of docs/performance.md of it.
bench: $(VENV)/.dev
	@$(BIN)/python -m bench.simulated
	@$(BIN)/python -m bench.overhead
	-@$(BIN)/python -m bench.host
	@$(BIN)/python -m bench.build
	-@$(BIN)/python -m bench.benchy
	@$(BIN)/python -m bench.serving $(ARGS); status=$$?; $(BIN)/python -m bench.report; $(BIN)/python -m tools.docs_tables; exit $$status

soak: $(VENV)/.dev
	@$(BIN)/python -m bench.soak $(ARGS); status=$$?; $(BIN)/python -m bench.report; $(BIN)/python -m tools.docs_tables; exit $$status

# What hostile inputs cost everybody else, in about seven minutes; ARGS=--full for all of it, --factor 3 on a busy machine.
hostile: $(VENV)/.dev
	@$(BIN)/python -m bench.hostile $(ARGS); status=$$?; $(BIN)/python -m tools.docs_tables; exit $$status

docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-tables: $(VENV)/.dev
	@$(BIN)/python -m tools.docs_tables

# Pins what a fresh installation of everything chooses today, with hashes; ARGS=--keep holds the versions that are locked.
lock: $(VENV)/.dev
	@$(BIN)/python -m tools.lock $(ARGS)

# What is known against the locked versions. Asks the advisory database: needs the network.
audit: $(RELEASE)/.release
	@for lock in requirements*.lock; do echo "$$lock"; $(RELEASE)/bin/pip-audit --strict --disable-pip --require-hashes -r $$lock || exit 1; done

# What a release is made of, as CycloneDX: a fresh environment with what runs configi and nothing else.
sbom: $(RELEASE)/.release
	@mkdir -p dist && rm -rf build/sbom
	@sh tools/setup.sh build/sbom .run requirements.lock
	@$(RELEASE)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file dist/sbom.json build/sbom/bin/python
	@rm -rf build/sbom
	@echo dist/sbom.json

clean:
	@rm -rf $(VENV) $(RELEASE) site build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache

# A stamp is written last, so that an interrupted installation is done again.
$(VENV)/.run: pyproject.toml requirements.lock tools/setup.sh
	@$(SETUP) .run requirements.lock

$(VENV)/.dev: pyproject.toml requirements.lock requirements-dev.lock tools/setup.sh
	@$(SETUP) .dev requirements.lock requirements-dev.lock

$(VENV)/.docs: pyproject.toml requirements.lock requirements-docs.lock tools/setup.sh
	@$(SETUP) .docs requirements.lock requirements-docs.lock

# An environment of its own: what audits and describes a release is not part of it.
$(RELEASE)/.release: requirements-release.lock tools/setup.sh
	@sh tools/setup.sh $(RELEASE) .release requirements-release.lock
