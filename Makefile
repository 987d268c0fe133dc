# The two commands: `make train` (the main job) and `make test`. Both set themselves up; nothing is done twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test setup lint clean

train: setup
	$(BIN)/worldmodel train $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

setup: $(VENV)/.done

# Rebuilt only when the dependencies, the pins or the C extension change.
$(VENV)/.done: pyproject.toml constraints.txt setup.py worldmodel/envs/_raster.c
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
