# Two commands on a fresh machine: `make demo` and `make test`. Each installs into .venv what is missing.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
OUT ?= demo

.PHONY: demo test test-slow lint types check clean nano-report

demo: .venv/.package
	rm -rf $(OUT)
	$(BIN)/musicgen-ft demo --out $(OUT) $(if $(CORPUS),--corpus "$(CORPUS)")

test: .venv/.dev
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/.dev
	$(BIN)/python -m pytest -m slow

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy
	$(BIN)/pyright

# How good nano is, and whether it learns: prints it, writes it into nano's model card, and makes a page to look at and
# listen to. BASE=FOLDER measures another base that pretrain_nano has made.
nano-report: .venv/.package
	rm -rf nano-report nano-finetuning
	$(BIN)/python train/nano_finetuning.py --out nano-finetuning $(if $(BASE),--base "$(BASE)")
	$(BIN)/python train/nano_report.py --out nano-report --card true --finetuning nano-finetuning \
		$(if $(BASE),--base "$(BASE)")

check: lint types test test-slow

clean:
	rm -rf .venv demo nano-report nano-finetuning dist build .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The stamps are older than pyproject.toml when its dependencies may have changed; otherwise nothing is installed.
.venv/.package: pyproject.toml | .venv/bin/python
	$(PIP) --editable .
	touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	$(PIP) --editable ".[dev,audiocraft]"
	$(PIP) --no-deps audiocraft==1.3.0
	touch $@ .venv/.package
