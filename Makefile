# `make study` and `make test` are the two commands; each works on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY := PASSIVE
# One process more than cores: many tests wait for a process, a server or a page.
TESTS = -n $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )) --dist loadfile --no-loadscope-reorder

.PHONY: study test style lint coverage lab ui dashboard book setup screenshots benchmarks clean

study: setup  ## the demo study on embedded data, with its report
	$(BIN)/python -m ppr_core study params/demo.yaml

test: lint  ## every test, after style and types
	$(BIN)/python -m pytest $(TESTS)

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint: style  ## style and types
	$(BIN)/mypy

coverage: style  ## every test, with the lines that none runs; fails below the floor
	$(BIN)/python -m pytest $(TESTS) --cov --cov-report=term

lab: setup  ## JupyterLab on 127.0.0.1, opened on notebooks/
	$(BIN)/python -m ppr_core lab

ui: setup  ## MLflow UI on 127.0.0.1 over mlruns/
	$(BIN)/python -m ppr_core ui

dashboard: setup  ## the explorer as a web page (Voila) on 127.0.0.1, its code hidden
	$(BIN)/python -m ppr_core dashboard

book: setup  ## a static site from the finished studies, to be read offline: mlruns/book/index.html
	$(BIN)/python -m ppr_core book

screenshots: setup  ## the README's pictures, from the finished study params/demo.yaml
	$(BIN)/python -m tests.browser.screenshots

benchmarks: setup  ## ratios measured side by side, printed
	$(BIN)/python -m tests.benchmarks

setup: .venv/.stamp

# Redone only when requirements change. uv where it is there or pip installs it; plain pip if not.
.venv/.stamp: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "expected Python 3.11 or newer, got $$($(PYTHON) --version); make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing requirements.txt into .venv (once; a few minutes with plain pip)"
	@if command -v uv >/dev/null || $(BIN)/python -m pip install -q uv 2>/dev/null; then \
		PATH="$(CURDIR)/$(BIN):$$PATH" uv pip install -q --python $(BIN)/python --compile-bytecode \
			-r requirements.txt && \
		PATH="$(CURDIR)/$(BIN):$$PATH" uv pip install -q --python $(BIN)/python --no-deps -e .; \
	else \
		$(BIN)/python -m pip install -q -r requirements.txt && \
		$(BIN)/python -m pip install -q --no-deps -e .; \
	fi
	@touch $@

clean:  ## remove the environment; results in mlruns/ stay
	rm -rf .venv
