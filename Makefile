# `make mnist` and `make test` work on a fresh clone with python3, make and a C++ compiler.
#   ARGS="-k packed"     more arguments for pytest, the example or the script that the target runs
#   DATA=folder          for `make mnist`: read the data from folder/mnist
#   PYTHON=python3.12    the Python to use; it must be 3.11 or later
#   VENV=                empty: use $(PYTHON) without a virtual environment, and install nothing

PYTHON ?= python3
VENV ?= .venv

ifeq ($(VENV),)
PY := $(PYTHON)
BIN :=
INSTALLED :=
INSTALLED_DEV :=
INSTALLED_DOCS :=
EDITABLE :=
CLIENTS :=
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
BIN := $(VENV)/bin/
PY := $(BIN)python
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALLED_DOCS := $(VENV)/.installed-docs
EDITABLE := $(VENV)/.editable
CLIENTS := $(VENV)-clients
export PATH := $(abspath $(BIN)):$(PATH)
endif

WHEELS := .venv-wheels
TOOLS := requirements-clients.txt

# Named after its Python: there is one extension, and it fits only the torch it was built with.
BUILT := build/.built-$(subst /,_,$(PY))
RESULTS := benchmarks/results
CPP := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help mnist test test-clients test-clients-all test-aarch64 test-install wheels sdist wheels-test fuzz fuzz-coverage malformed planted soak sanitize build docs bench bench-full bench-peers bench-check bench-report compare-peers cuda-check gpu-prepare gpu-check lint format clean always

help: ## list the targets
	@awk -F ':.*## ' '/^##@ / { print "\n" substr($$0, 5) } \
	  /^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo && sed -nE 's/^#   /  /p' $(firstword $(MAKEFILE_LIST))

##@ Build, run and test

mnist: build ## train the MNIST example; download the data if it is missing
	$(PY) examples/mnist_rows.py --download $(if $(DATA),--data $(DATA)/mnist) $(ARGS)

test: build ## run the tests and doctests; ARGS="-m slow" runs the slow ones, examples at full size
	$(PY) -m pytest -m "not slow" --doctest-modules tests fastrnn $(ARGS)

build: $(BUILT) $(EDITABLE) ## build the extension in place

docs: build $(INSTALLED_DOCS) ## build the documentation site in build/docs/html
	$(PY) -m sphinx --fail-on-warning --keep-going --fresh-env --quiet -d build/docs/doctrees docs build/docs/html

# With the torch of $(VENV), for which the extension was built.
test-clients: build $(if $(VENV),$(CLIENTS)/.installed) ## test with the small tools of docs/pytorch.md's table
	PYTHONPATH=$(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH)) \
	  $(if $(VENV),$(CLIENTS)/bin/python,$(PY)) -m pytest tests/pytorch/test_clients.py -rs $(ARGS)

test-clients-all: ## test with all of them
	$(MAKE) test-clients CLIENTS=$(CLIENTS)-all TOOLS=requirements-clients-all.txt

test-aarch64: build ## test the CPU kernels for aarch64, in an emulator
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

fuzz: build $(INSTALLED_DEV) ## make random calls, and check the results: make fuzz SECONDS=60 SEED=0
	$(PY) tests/fuzz/fuzz.py --seconds $(or $(SECONDS),60) --seed $(or $(SEED),0) $(ARGS)

malformed: build $(INSTALLED_DEV) ## make calls with malformed arguments: make malformed COUNT=20000 SEED=0
	$(PY) tests/fuzz/malformed.py --count $(or $(COUNT),20000) --seed $(or $(SEED),0) $(ARGS)

soak: build ## call from several threads, and watch results and memory: make soak MINUTES=10 SEED=0
	$(PY) tests/fuzz/soak.py --minutes $(or $(MINUTES),10) --seed $(or $(SEED),0)

# SANITIZER=thread runs the soak under ThreadSanitizer.
sanitize: $(INSTALLED_DEV) ## run the kernels' tests under gcc's sanitizers: make sanitize SANITIZER=address
	$(PY) tests/fuzz/sanitize.py $(or $(SANITIZER),address) $(ARGS)

planted: build $(INSTALLED_DEV) ## plant faults in the CPU code; `make fuzz` or `make malformed` must find each
	$(PY) tests/fuzz/planted_faults.py $(ARGS)

fuzz-coverage: build $(INSTALLED_DEV) ## count the lines of the CPU kernels that random calls reach
	$(PY) tests/fuzz/fuzz_coverage.py --seconds $(or $(SECONDS),60) --seed $(or $(SEED),0) $(ARGS)

##@ Benchmarks

bench: build ## run a representative set of benchmarks, in a few minutes
	$(PY) -m pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds $(ARGS)

bench-full: build ## run every benchmark, which takes hours, and keep the results for bench-report
	mkdir -p $(RESULTS)
	$(PY) -m pytest benchmarks --benchmark-only --full --benchmark-columns=median,iqr,rounds \
	  --benchmark-json=$(RESULTS)/kernels.json
	$(PY) -m benchmarks.compare --threads 1 2 --json $(RESULTS)/cpu.json
	ATEN_CPU_CAPABILITY=avx2 $(PY) -m benchmarks.compare --only tiny small medium large long \
	  --json $(RESULTS)/cpu-avx2.json
	$(PY) -m benchmarks.compare --sweep --json $(RESULTS)/sweeps.json

bench-peers: ## compare with JAX, ONNX Runtime and oneDNN, in a separate environment
	$(MAKE) VENV=.venv-peers compare-peers

compare-peers: $(VENV)/.installed-peers build
	$(PY) -m benchmarks.compare --peers --threads 1 --json $(RESULTS)/peers-1-thread.json $(ARGS)
	$(PY) -m benchmarks.compare --peers --threads 2 --json $(RESULTS)/peers-2-threads.json $(ARGS)

bench-check: build ## time ten rows, and say which became slower than in results of the same processor
	$(PY) -m benchmarks.check $(ARGS)

bench-report: build ## write docs/benchmarks.md from the results
	$(PY) -m benchmarks.report

##@ CUDA

cuda-check: ## compile the CUDA kernels for every architecture, and show the resources of each
	$(PYTHON) cuda_build.py $(ARGS)

gpu-prepare: ## without a GPU: build what gpu-check runs on an H100 or H200, in 5 minutes
	$(PYTHON) -m benchmarks.gpu.prepare $(ARGS)

gpu-check: $(INSTALLED) ## on a machine with a GPU: check, sanitize, test and measure, in 8 minutes
	$(PY) -m benchmarks.gpu.visit $(ARGS)

##@ Wheels and installs

# Build tools only: the headers come from the wheels of each torch.
wheels: $(WHEELS)/.installed ## build a wheel for each Python; each supports several versions of torch
	$(WHEELS)/bin/python wheels.py $(ARGS)

sdist: $(WHEELS)/.installed ## build the source distribution, and check it
	FASTRNN_TORCHES=all $(WHEELS)/bin/python -m build --sdist --outdir dist
	$(WHEELS)/bin/python -m twine check --strict dist/*.tar.gz

wheels-test: ## install the wheels without a compiler: make wheels-test ARGS="--python 3.11 --torch 2.13.0"
	$(PYTHON) tests/project/try_wheels.py $(ARGS)

test-install: ## try every way to install: make test-install ARGS="--python python3.11 --torch 2.11.0 2.15.0 --tests"
	$(PYTHON) tests/project/try_install.py $(ARGS)

# Environments, and the extension.

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

$(INSTALLED_DOCS): requirements-docs.txt $(INSTALLED)
	$(PY) -m pip install -r requirements-docs.txt
	@touch $@

$(VENV)/.installed-peers: benchmarks/requirements-peers.txt $(INSTALLED)
	$(PY) -m pip install -r benchmarks/requirements-peers.txt
	@touch $@

$(WHEELS)/.installed: requirements-wheels.txt
	$(PYTHON) -m venv $(WHEELS)
	$(WHEELS)/bin/python -m pip install -r requirements-wheels.txt
	@touch $@

# No torchvision: tools ask for it, none needs it, and a CUDA build does not load with a CPU-only torch.
$(CLIENTS)/.installed: $(wildcard tests/pytorch/requirements-clients*.txt) requirements.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install -r tests/pytorch/$(TOOLS)
	$(CLIENTS)/bin/python -m pip uninstall -y torchvision
	@touch $@

# Rebuilt after an update of torch, too.
$(BUILT): setup.py $(wildcard *_build.py) pyproject.toml $(CPP) $(INSTALLED) $(if $(VENV),$(wildcard $(VENV)/lib/python3*/site-packages/torch/version.py),always)
	$(PY) setup.py build_ext --inplace
	@rm -f build/.built-* && touch $@

$(EDITABLE): pyproject.toml $(INSTALLED) | $(BUILT)
	$(PY) -m pip install --no-build-isolation --no-deps -e .
	@touch $@
