# Each target makes what it needs, the environment included.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo test test-slow test-lowest test-newest docs dist quality format clean

help:
	@echo "make demo     photographs with one reference; learn prompts, judge them, draw heat maps (about three minutes after the install)"
	@echo "make test     run the tests, but for the slow ones (make test-slow)"
	@echo "make docs     build the pages of docs/ into outputs/docs, links checked"
	@echo "make quality  lint and type-check"
	@echo "make dist     build and check wheel and sdist"
	@echo "make format   let ruff rewrite the code"

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python scripts/demo.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow

# On the lowest and the newest versions that pyproject.toml allows; needs uv.
test-lowest: PINNED = --python 3.11 --resolution lowest-direct
test-newest: PINNED = --python 3.13
test-lowest test-newest:
	uv run --isolated --no-project $(PINNED) --with '.[dev]' python -m pytest -n auto --dist worksteal -m "not slow"

dist: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	@ls -l dist | awk 'NR > 1 {print $$9, int($$5 / 1024) " KB"}'

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir outputs/docs
	@echo "open outputs/docs/index.html; its search needs: $(BIN)/python -m http.server -d outputs/docs"

quality: $(VENV)/.installed
	$(BIN)/ruff check src scripts tests docs
	$(BIN)/ruff format --check src scripts tests docs
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix src scripts tests docs
	$(BIN)/ruff format src scripts tests docs

clean:
	rm -rf $(VENV) outputs
