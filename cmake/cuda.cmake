# The CUDA backend: a module of its own, so that the one for the CPU is the same with and without.
#
# BERTRT_CUDA=ON: bertrt._cuda, by nvcc, which is looked for in $CUDA_HOME, on the PATH, in
# /usr/local/cuda, and in the wheel nvidia-cuda-nvcc of the Python that builds. The CUDA runtime is
# linked statically and opens the driver when it is first used: nothing is needed that is not
# everywhere.
# BERTRT_CUDA=EMULATED: _cuda_emulated, for tests: the same sources by the host's compiler, run on the
# CPU by tests/cuda/emulator. It is never installed.
# bertrt refuses a module of another version. Its version has one home.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS bertrt/version.py)
file(STRINGS bertrt/version.py version REGEX "^__version__ = ")
string(REGEX REPLACE ".*\"(.*)\"" "\\1" version "${version}")
set_source_files_properties(csrc/bindings/cuda_engine.cpp
                            PROPERTIES COMPILE_DEFINITIONS BERTRT_VERSION="${version}")

set(kernels
    csrc/cuda/attention.cu csrc/cuda/attention_mma.cu csrc/cuda/hopper/attention.cu
    csrc/cuda/hopper/linear.cu csrc/cuda/hopper/linear_fp8.cu csrc/cuda/linear.cu
    csrc/cuda/linear_fp8.cu csrc/cuda/rows.cu)
set(host
    csrc/bindings/cuda_engine.cpp csrc/bindings/inputs.cpp
    csrc/bindings/testing/cuda_kernels.cpp csrc/bindings/testing/cuda_products.cpp
    csrc/cuda/batch_inputs.cpp csrc/cuda/engine.cpp csrc/cuda/kernel_choice.cpp csrc/cuda/model.cpp
    csrc/cuda/part.cpp csrc/cuda/runtime.cpp)

if(BERTRT_CUDA STREQUAL "EMULATED")
  list(APPEND kernels tests/cuda/cluster_probes.cu tests/cuda/hopper_probes.cu
       tests/cuda/hopper_register_probes.cu tests/cuda/multicast_probes.cu tests/cuda/probes.cu)
  set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX)
  add_library(bertrt_cuda OBJECT ${kernels})
  # -fsanitize=thread makes the compiler call the emulator before each access of a kernel to memory;
  # its own runtime is not linked. Line numbers are for the emulator's reports.
  target_compile_options(bertrt_cuda PRIVATE -O2 -g1 -ffp-contract=off -fsanitize=thread
                                             -Wno-unknown-pragmas)
  target_include_directories(bertrt_cuda BEFORE PUBLIC tests/cuda/emulator csrc tests/cuda)
  target_compile_definitions(bertrt_cuda PUBLIC BERTRT_CUDA_EMULATOR)
  pybind11_add_module(
    _cuda_emulated NO_EXTRAS tests/cuda/emulated_module.cpp
    tests/cuda/emulator/device_memory.cpp tests/cuda/emulator/elements.cpp
    tests/cuda/emulator/hopper.cpp tests/cuda/emulator/machine.cpp tests/cuda/emulator/primitives.cpp
    tests/cuda/emulator/runtime.cpp tests/cuda/emulator/shared_memory.cpp
    tests/cuda/emulator/streams.cpp tests/cuda/emulator/tsan_hooks.cpp
    tests/cuda/emulator/wgmma.cpp ${host})
  target_link_libraries(_cuda_emulated PRIVATE bertrt_cuda bertrt_core)
else()
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c "import nvidia; print(';'.join(nvidia.__path__))"
    OUTPUT_VARIABLE wheels
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  list(TRANSFORM wheels APPEND "/cu[0-9]*")
  file(GLOB wheels ${wheels})
  find_program(CMAKE_CUDA_COMPILER nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda ${wheels}
               PATH_SUFFIXES bin)
  if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "BERTRT_CUDA=ON needs nvcc, which is not in CUDA_HOME, on the PATH, or in "
                        "/usr/local/cuda: pip install nvidia-cuda-nvcc")
  endif()
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_ARCHITECTURES OFF) # those of the options below
  # nvcc looks in lib64, which the wheels do not have.
  get_filename_component(toolkit "${CMAKE_CUDA_COMPILER}" DIRECTORY)
  set(CMAKE_CUDA_FLAGS "-L${toolkit}/../lib")
  enable_language(CUDA)
  add_library(bertrt_cuda STATIC ${kernels})
  # sm_80 runs on all of 8.x, and its PTX on whatever comes later; sm_90a on Hopper alone. fp8 begins
  # with sm_89.
  foreach(kernel ${kernels})
    set(oldest 80)
    if(kernel MATCHES "linear_fp8")
      set(oldest 89)
    endif()
    set_source_files_properties(
      ${kernel} PROPERTIES COMPILE_OPTIONS
                           "-gencode=arch=compute_${oldest},code=[sm_${oldest},compute_${oldest}]")
  endforeach()
  target_compile_options(
    bertrt_cuda PRIVATE -gencode=arch=compute_90a,code=sm_90a
                        -Xcompiler=-Wall,-Wextra,-fvisibility=hidden -Xptxas=-warn-spills)
  target_include_directories(bertrt_cuda PUBLIC csrc ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  set_target_properties(bertrt_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static)
  pybind11_add_module(_cuda csrc/bindings/cuda_module.cpp ${host})
  set_target_properties(_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static)
  target_link_libraries(_cuda PRIVATE bertrt_cuda bertrt_core)
endif()
set_target_properties(bertrt_cuda PROPERTIES POSITION_INDEPENDENT_CODE ON)
