# make demo    trains the stages and the default model, draws, judges: about 14 minutes on 2 cores
# make test    the tests
# make lint    ruff and mypy
# make bench   speed, as ratios, printed as tables
# make clean   removes what was trained and rendered; make clean-all also removes the environment
#
# Each makes .venv and installs on first use; PYTHON=python3.12 make ... picks another Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint format bench clean clean-all install

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Salon needs Python 3.11 or newer; say PYTHON=python3.11 make ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	touch $@

# A demo that was stopped goes on where it was; one that is finished only draws and judges again.
demo: $(READY)
	$(BIN)/python train.py experiment=demo
	$(BIN)/python sample.py checkpoint=runs/demo prompts=conf/demo_prompts.txt 'seeds=[0,1]' out=runs/demo/pictures
	$(BIN)/python -m salon.jury evaluate checkpoint=runs/demo 'splits=[test,heldout]' images=500
	@echo
	@echo "Look at runs/demo/pictures/grid.png"

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python benchmarks/unet.py
	$(BIN)/python benchmarks/stream.py
	$(BIN)/python benchmarks/rivals.py
	$(BIN)/python benchmarks/precomputed.py
	$(BIN)/python benchmarks/oracle.py
	$(BIN)/python benchmarks/frechet.py
	$(BIN)/python benchmarks/features.py
	$(BIN)/python benchmarks/adversarial.py
	$(BIN)/python benchmarks/damsm.py
	$(BIN)/python benchmarks/framework.py
	$(BIN)/python benchmarks/devices.py
	$(BIN)/python benchmarks/multirun.py
	$(BIN)/python benchmarks/paper.py

clean:
	rm -rf runs multirun stages samples outputs data/shapes-* data/.shapes-* .pytest_cache .mypy_cache .ruff_cache

clean-all: clean
	rm -rf $(VENV) src/*.egg-info
