# `make mnist` and `make test` work on a fresh clone with python3, make and a C++ compiler.
#   VENV=             empty: use $(PYTHON) as it is, install nothing, build in place
#   ARGS="-k packed"  passed on to the example or to pytest
#   DATA=folder       a folder that holds mnist/

PYTHON ?= python3
VENV ?= .venv

ifeq ($(VENV),)
PY := $(PYTHON)
BIN :=
INSTALLED :=
INSTALLED_DEV :=
EDITABLE :=
CLIENTS :=
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
BIN := $(VENV)/bin/
PY := $(BIN)python
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
EDITABLE := $(VENV)/.editable
CLIENTS := $(VENV)-clients
export PATH := $(abspath $(BIN)):$(PATH)
endif

WHEELS := .venv-wheels
TOOLS := requirements-clients.txt

# Named after its Python: the extension fits the torch that it was built with, and there is one.
BUILT := build/.built-$(subst /,_,$(PY))
RESULTS := benchmarks/results
CPP := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help mnist test test-clients test-clients-all test-aarch64 test-install wheels sdist wheels-test fuzz fuzz-coverage malformed planted soak sanitize build bench bench-full bench-peers bench-report compare-peers cuda-check gpu-prepare gpu-check lint format clean always

help: ## list the targets
	@awk -F ':.*## ' '/^##@ / { print "\n" substr($$0, 5) } \
	  /^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo && sed -nE 's/^#   /  /p' $(firstword $(MAKEFILE_LIST))

##@ Build, run and test

mnist: build ## train the MNIST example, downloading the data where it is missing
	$(PY) examples/mnist_rows.py --download $(if $(DATA),--data $(DATA)/mnist) $(ARGS)

test: build ## run the tests and the doctests; the slow ones, examples at full size: ARGS="-m slow"
	$(PY) -m pytest -m "not slow" --doctest-modules tests fastrnn $(ARGS)

build: $(BUILT) $(EDITABLE) ## build the extension in place

# The same torch as in $(VENV), so that what was built for it serves.
test-clients: build $(if $(VENV),$(CLIENTS)/.installed) ## run the small tools of docs/pytorch.md's table
	PYTHONPATH=$(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH)) \
	  $(if $(VENV),$(CLIENTS)/bin/python,$(PY)) -m pytest tests/pytorch/test_clients.py -rs $(ARGS)

test-clients-all: ## run all of them
	$(MAKE) test-clients CLIENTS=$(CLIENTS)-all TOOLS=requirements-clients-all.txt

test-aarch64: build ## run the tests of the CPU's kernels for aarch64, in an emulator
	FASTRNN_TEST_ON=aarch64 $(PY) -m pytest $(addprefix tests/kernels/test_raw.py::,\
	  test_kernels test_tanh test_large_steps_are_left_to_torch) $(ARGS)

##@ Style

lint: $(INSTALLED_DEV) ## check style and types
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy
	$(BIN)pyright --pythonpath $(PY) tests/project/typed.py
	$(BIN)clang-format --dry-run -Werror $(CPP) examples/cpp/*.cpp
	! grep -nE '^.{101}' $(CPP) # comments, which clang-format leaves alone

format: $(INSTALLED_DEV) ## rewrite the sources in the project's style
	$(BIN)ruff check --fix-only .
	$(BIN)ruff format .
	$(BIN)clang-format -i $(CPP) examples/cpp/*.cpp

clean: ## remove what was built, but not the virtual environment
	rm -rf build dist *.egg-info fastrnn/*.so fastrnn/_built_for.json .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

##@ Random calls, sanitizers

fuzz: build $(INSTALLED_DEV) ## run random problems: make fuzz SECONDS=60 SEED=0
	$(PY) tests/fuzz/fuzz.py --seconds $(or $(SECONDS),60) --seed $(or $(SEED),0) $(ARGS)

malformed: build $(INSTALLED_DEV) ## call with malformed arguments: make malformed COUNT=20000 SEED=0
	$(PY) tests/fuzz/malformed.py --count $(or $(COUNT),20000) --seed $(or $(SEED),0) $(ARGS)

soak: build ## call from several threads: right results, flat memory: make soak MINUTES=10 SEED=0
	$(PY) tests/fuzz/soak.py --minutes $(or $(MINUTES),10) --seed $(or $(SEED),0)

# SANITIZER=thread: ThreadSanitizer on the soak.
sanitize: $(INSTALLED_DEV) ## run the kernels' tests under sanitizers of gcc: make sanitize SANITIZER=address
	$(PY) tests/fuzz/sanitize.py $(or $(SANITIZER),address) $(ARGS)

planted: build $(INSTALLED_DEV) ## plant faults in the CPU's code, each of which `make fuzz` must find
	$(PY) tests/fuzz/planted_faults.py $(ARGS)

fuzz-coverage: build $(INSTALLED_DEV) ## count the lines of the CPU's kernels that random problems run
	$(PY) tests/fuzz/fuzz_coverage.py --seconds $(or $(SECONDS),60) --seed $(or $(SEED),0) $(ARGS)

##@ Benchmarks

bench: build ## run a representative set of benchmarks, in a few minutes
	$(PY) -m pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds $(ARGS)

bench-full: build ## run every benchmark, in hours, and keep the results for bench-report
	mkdir -p $(RESULTS)
	$(PY) -m pytest benchmarks --benchmark-only --full --benchmark-columns=median,iqr,rounds \
	  --benchmark-json=$(RESULTS)/kernels.json
	$(PY) -m benchmarks.compare --threads 1 2 --json $(RESULTS)/cpu.json
	ATEN_CPU_CAPABILITY=avx2 $(PY) -m benchmarks.compare --only tiny small medium large long \
	  --json $(RESULTS)/cpu-avx2.json
	$(PY) -m benchmarks.compare --sweep --json $(RESULTS)/sweeps.json

bench-peers: ## compare with JAX, ONNX Runtime and oneDNN, in an environment of their own
	$(MAKE) VENV=.venv-peers compare-peers

compare-peers: $(VENV)/.installed-peers build
	$(PY) -m benchmarks.compare --peers --threads 1 --json $(RESULTS)/peers-1-thread.json $(ARGS)
	$(PY) -m benchmarks.compare --peers --threads 2 --json $(RESULTS)/peers-2-threads.json $(ARGS)

bench-report: build ## write docs/benchmarks.md from the results
	$(PY) -m benchmarks.report

##@ CUDA

cuda-check: ## compile the CUDA kernels for every architecture, and show what each needs
	$(PYTHON) cuda_build.py $(ARGS)

gpu-prepare: ## build at home what gpu-check runs on an H100 or H200, in 5 minutes
	$(PYTHON) -m benchmarks.gpu.prepare $(ARGS)

gpu-check: $(INSTALLED) ## on a machine with a GPU: check, sanitize, test and measure, in 8 minutes
	$(PY) -m benchmarks.gpu.visit $(ARGS)

##@ Wheels and installs

# The tools alone: what is compiled sees the torches' headers.
wheels: $(WHEELS)/.installed ## build a wheel for each Python, which serves several torches
	$(WHEELS)/bin/python wheels.py $(ARGS)

sdist: $(WHEELS)/.installed ## pack the sources, and check the package
	FASTRNN_TORCHES=all $(WHEELS)/bin/python -m build --sdist --outdir dist
	$(WHEELS)/bin/python -m twine check --strict dist/*.tar.gz

wheels-test: ## install them where no compiler is: make wheels-test ARGS="--python 3.11 --torch 2.13.0"
	$(PYTHON) tests/project/try_wheels.py $(ARGS)

test-install: ## install in every way: make test-install ARGS="--python python3.11 --torch 2.11.0 2.15.0 --tests"
	$(PYTHON) tests/project/try_install.py $(ARGS)

# Environments, and what is built in them.

$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fastrnn needs Python 3.11 or later: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "No virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PY) -m pip install -r requirements.txt
	@touch $@

$(INSTALLED_DEV): requirements-dev.txt $(INSTALLED)
	$(PY) -m pip install -r requirements-dev.txt
	@touch $@

$(VENV)/.installed-peers: benchmarks/requirements-peers.txt $(INSTALLED)
	$(PY) -m pip install -r benchmarks/requirements-peers.txt
	@touch $@

$(WHEELS)/.installed: requirements-wheels.txt
	$(PYTHON) -m venv $(WHEELS)
	$(WHEELS)/bin/python -m pip install -r requirements-wheels.txt
	@touch $@

# No torchvision: tools ask for it, none needs it, and one for CUDA does not load beside a CPU's torch.
$(CLIENTS)/.installed: $(wildcard tests/pytorch/requirements-clients*.txt) requirements.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install -r tests/pytorch/$(TOOLS)
	$(CLIENTS)/bin/python -m pip uninstall -y torchvision
	@touch $@

# Built again after an update of torch, too.
$(BUILT): setup.py $(wildcard *_build.py) pyproject.toml $(CPP) $(INSTALLED) $(if $(VENV),$(wildcard $(VENV)/lib/python3*/site-packages/torch/version.py),always)
	$(PY) setup.py build_ext --inplace
	@rm -f build/.built-* && touch $@

$(EDITABLE): pyproject.toml $(INSTALLED) | $(BUILT)
	$(PY) -m pip install --no-build-isolation --no-deps -e .
	@touch $@
