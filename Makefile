# Two commands do everything on a fresh machine: `make demo` and `make test`.
# the first interpreter that runs and is new enough
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# a worker for each core; a file stays with one of them, so that what its tests share is made once
WORKERS := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: install demo test test-all test-real lint pictures clean

install: $(STAMP)

# torch first and by itself, so that no other package asks the index for a CUDA build of it
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "align needs Python 3.11 or newer: make install PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep -m1 '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,tensorboard]'
	touch $(STAMP)

demo: install
	$(BIN)/align run recipes/dpo_qlora.yaml

test: install
	$(BIN)/python -m pytest $(WORKERS)

test-all: install
	$(BIN)/python -m pytest $(WORKERS) -m 'not real'

# one worker: each test holds a real model
test-real: install
	$(BIN)/python -m pytest -m real

# the pictures and the terminal text of README.md, from two runs of the demo
pictures: install
	$(BIN)/python docs/pictures.py

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info
