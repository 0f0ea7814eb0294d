# Two commands: `make demo` and `make test`. Both set up .venv here and write nothing outside this folder.
PYTHON ?= python3
TORCH ?= torch==2.13.0
PHOTO ?=
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
PLUGINS := $(wildcard plugins/*)

export TMPDIR := $(VENV)/tmp
export XDG_CACHE_HOME := $(VENV)/cache
export TORCHINDUCTOR_CACHE_DIR := $(VENV)/cache/inductor
export TRITON_CACHE_DIR := $(VENV)/cache/triton
export PYTHONNOUSERSITE := 1

.PHONY: demo test setup clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/deocc demo -o demo $(if $(PHOTO),--photo "$(PHOTO)")

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	DEOCC_STRICT=1 $(BIN)/python -m pytest -q
	$(BIN)/python -m pytest -q bench -m gate

setup: $(VENV)/.installed-dev

# torch goes first and alone, so that no other package can choose a build of it.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(TMPDIR)
	$(PIP) install -q "$(TORCH)"
	touch $@

$(VENV)/.requirements: $(VENV)/.torch requirements.txt
	$(PIP) install -q -r requirements.txt
	touch $@

$(VENV)/.installed: $(VENV)/.requirements pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/* csrc/*/*) $(wildcard plugins/*/pyproject.toml)
	$(PIP) install -q --no-build-isolation --no-deps -e .
	$(PIP) install -q --no-build-isolation --no-deps $(foreach plugin,$(PLUGINS),-e ./$(plugin))
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt requirements-matchers.txt
	$(PIP) install -q -r requirements-dev.txt
	$(PIP) install -q --no-build-isolation --no-deps -r requirements-matchers.txt
	touch $@

clean:
	rm -rf $(VENV) build demo
