# The CUDA sources compiled by the host compiler against csrc/cuda/emulator: the module
# _cuda_emulated, for tests. -fsanitize=thread makes the compiler call the emulator before each access
# of a kernel to memory; its own runtime is not linked. Line numbers are for the emulator's reports.
set(cuda_sources csrc/cuda/attention.cu csrc/cuda/attention_mma.cu csrc/cuda/linear.cu csrc/cuda/rows.cu
                 tests/cuda/probes.cu)
set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX)
add_library(bertrt_cuda_kernels OBJECT ${cuda_sources})
target_compile_options(bertrt_cuda_kernels PRIVATE -O2 -g1 -ffp-contract=off -fsanitize=thread
                                                   -Wno-unknown-pragmas)
set_target_properties(bertrt_cuda_kernels PROPERTIES POSITION_INDEPENDENT_CODE ON)

pybind11_add_module(
  _cuda_emulated NO_EXTRAS
  csrc/bindings/cuda_emulated.cpp csrc/bindings/cuda_kernels.cpp csrc/bindings/cuda_products.cpp
  csrc/bindings/inputs.cpp csrc/cuda/runtime.cpp csrc/cuda/emulator/emulator.cpp
  csrc/cuda/emulator/runtime.cpp)
target_link_libraries(_cuda_emulated PRIVATE bertrt_core bertrt_cuda_kernels)

foreach(target bertrt_cuda_kernels _cuda_emulated)
  target_include_directories(${target} BEFORE PRIVATE csrc/cuda/emulator csrc tests/cuda)
  target_compile_definitions(${target} PRIVATE BERTRT_CUDA_EMULATOR)
endforeach()
