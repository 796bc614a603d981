# make demo    a head CT becomes a report, on this machine      make demo STUDY=DIR  PACS=http://host/dicom-web  ONCE=1
# make test    what CI runs: checks, then the tests               make test-full       the long suites too
# make check   lint, format, types, layers, dependencies          make bench [ONLY=encoder]
# make faults  kill and cut, then check the books   [ROUNDS=200] [ONLY=kill-web,...] [SEED=1] [LONG=1] [WRITE=1]
# make coverage-hostile    thousands of hostile inputs, and the lines of listener, STOW and volume code they reach
# make soak    mixed load for [MINUTES=60]: what grows, what gets slower, what is lost
#
# The first call makes the environment .venv: 6 GB with PyTorch's CUDA builds. Without a GPU take the CPU builds
# (far smaller) by naming PyTorch's CPU package index:  make demo TORCH_INDEX=<its address, see README.md>

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
TORCH ?= torch==2.14.1 torchvision==0.29.1
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
STUDY ?=
PACS ?=
ONCE ?=
ONLY ?=
ROUNDS ?= 200
SEED ?= 1
LONG ?=
WRITE ?=
MINUTES ?= 60

.PHONY: demo test test-full check bench coverage-hostile faults soak lock clean

$(READY): pyproject.toml deploy/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hlip needs Python 3.11 or newer; name one: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/pip install --quiet -c deploy/constraints.txt -e '.[dev,server]'
	@touch $@

demo: $(READY)
	$(BIN)/python deploy/demo.py $(if $(STUDY),--study "$(STUDY)") $(if $(PACS),--pacs "$(PACS)") $(if $(ONCE),--once)

test: $(READY) check
	@sh deploy/debian-packages.sh
	$(BIN)/python -m pytest -m "not full" -n auto --dist loadfile

test-full: $(READY) check
	@sh deploy/debian-packages.sh
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pip check

bench: $(READY)
	$(BIN)/python deploy/bench/__main__.py $(ONLY)

faults: $(READY)
	@sh deploy/debian-packages.sh
	PYTHONPATH=deploy $(BIN)/python -m faults --rounds $(ROUNDS) --seed $(SEED) \
	  $(if $(ONLY),--only $(ONLY)) $(if $(LONG),--long) $(if $(WRITE),--write)

coverage-hostile: $(READY)
	rm -rf .cache/coverage && mkdir -p .cache/coverage
	$(BIN)/coverage run -m pytest -q -rN -s tests/test_hostile.py
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

soak: $(READY)
	@sh deploy/debian-packages.sh
	$(BIN)/python deploy/soak.py --minutes $(MINUTES)

lock:
	uv pip compile --universal --no-header --no-annotate --python-version 3.11 --all-extras --quiet pyproject.toml \
	  --no-emit-package torch --no-emit-package torchvision --no-emit-package triton -o - \
	  | grep -Ev '^(nvidia|cuda)-' > deploy/constraints.txt

clean:
	rm -rf $(VENV) demo .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
