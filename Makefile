# make reproduce | reproduction-docs | docs | test | test-all | lint | lowest | dist | bench | clean. PYTHON chooses the interpreter; ARGS="…" passes overrides on to the sweep.
PYTHON ?= python3
BIN := .venv/bin
HAS_TORCH = -c "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"

# Four seeds everywhere, then rounds of four for the claims that are still open, within six minutes.
reproduce: .venv/installed
	$(BIN)/nfexp -m experiment=ablations train=quick 'seed=range(4)' until=decided max_seeds=24 time_budget=6 $(ARGS)

# The page, tables and pictures of docs/reproduction.md, from the CSVs in docs/reproduction/.
reproduction-docs: .venv/installed
	$(BIN)/python -m reproduction docs

# The documentation site, build/site/index.html; any warning is an error. Nothing is fetched once the packages are there.
docs: .venv/installed
	$(BIN)/python -c "import zensical, mkdocstrings_handlers" || \
		$(BIN)/python -m pip install --quiet --constraint .venv/constraints.txt --editable '.[docs]'
	$(BIN)/python -m documentation

# One process per core, at most four: many tests start a small sweep of their own.
test: lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# The long ones as well: kills, Ctrl-C, other launchers.
test-all: lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m ""

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

# A torch that PYTHON already has is kept; otherwise the pinned one is installed.
.venv/installed: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv $$($(PYTHON) $(HAS_TORCH) && echo --system-site-packages) .venv
	if $(BIN)/python $(HAS_TORCH); then grep -v '^torch==' constraints.txt; else cat constraints.txt; fi > .venv/constraints.txt
	$(BIN)/python -m pip install --quiet --constraint .venv/constraints.txt --editable '.[dev]'
	touch $@

# The lowest versions that pyproject.toml declares, in an environment of their own, on tests that use all of them.
LOWEST := tests/test_spec.py tests/test_planning.py tests/test_cli.py tests/test_record.py tests/test_table.py tests/test_report.py
lowest:
	rm -rf .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --constraint lowest.txt --editable . pytest hypothesis
	.venv-lowest/bin/python -m pytest -W default $(LOWEST)

# Source distribution and wheel, built in a clean environment each, with their descriptions checked.
dist: .venv/installed
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m pip install --quiet twine
	$(BIN)/python -m twine check --strict dist/*

# All tables of docs/performance.md, in under 20 minutes on two cores; ARGS="--quick" for a look.
bench: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint .venv/constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks all $(ARGS)

clean:
	rm -rf .venv .venv-lowest .cache build dist .mypy_cache .pytest_cache .ruff_cache

.PHONY: reproduce reproduction-docs docs test test-all lint lowest dist bench clean
