// What the bindings of single CUDA kernels share: arrays on the device.
//
// Arrays carry elements by their bits: float32 is fp32, uint16 is fp16 or bf16.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "bindings/bindings.h"
#include "core/error.h"
#include "cuda/kernels.h"
#include "cuda/runtime.h"
#ifdef BERTRT_CUDA_EMULATOR
#include "emulator/emulator.h"
#endif

namespace bertrt::bindings {

#ifdef BERTRT_CUDA_EMULATOR
// Memory that begins as NaN: all of the emulator's does, which stops at a read of it.
inline cuda::DeviceMemory poisoned_memory(int64_t bytes) {
  return cuda::DeviceMemory(static_cast<size_t>(bytes));
}
inline void peek(void* to, const void* from, size_t bytes) {
  cuda::emulator::peek(to, from, bytes);
}
#else
inline cuda::DeviceMemory poisoned_memory(int64_t bytes) {
  cuda::DeviceMemory memory(static_cast<size_t>(bytes));
  cuda::check(cudaMemset(memory.data(), 0xff, memory.bytes()), "a test's memory");
  return memory;
}
inline void peek(void* to, const void* from, size_t bytes) {
  cuda::check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "a test's rows");
}
#endif

// A dense array of any type.
class DeviceArray {
 public:
  explicit DeviceArray(const pybind11::array& array)
      : memory_(static_cast<size_t>(array.nbytes())) {
    cuda::check(cudaMemcpy(memory_.data(), array.data(), memory_.bytes(), cudaMemcpyHostToDevice),
                "a test's array");
  }
  template <class T>
  const T* as() const {
    return static_cast<const T*>(memory_.data());
  }

 private:
  cuda::DeviceMemory memory_;
};

// Rows with NaN between them, at which nobody may look, and which nobody may change.
class DeviceMatrix {
 public:
  DeviceMatrix(int64_t rows, int64_t cols, cuda::Element element, int64_t stride)
      : count_(rows),
        cols_(cols),
        memory_(poisoned_memory(rows * stride * cuda::bytes_of(element))) {
    rows_ = {memory_.data(), stride, element};
  }
  DeviceMatrix(int64_t rows, int64_t cols, cuda::Element element)
      : DeviceMatrix(rows, cols, element, cuda::row_stride(cols, element)) {}
  DeviceMatrix(const pybind11::array& array, cuda::Element element)
      : DeviceMatrix(shape(array, 0), shape(array, 1), element) {
    if (array.itemsize() != cuda::bytes_of(element)) {
      throw BatchError("an array must have float32 for fp32, uint16 for fp16 and bf16");
    }
    if (array.size() == 0) return;
    cuda::check(cudaMemcpy2D(rows_.data, pitch(), array.data(), width(), width(),
                             static_cast<size_t>(count_), cudaMemcpyHostToDevice),
                "a test's rows");
  }

  const cuda::DeviceRows& rows() const { return rows_; }
  int64_t count() const { return count_; }
  int64_t cols() const { return cols_; }

  // After a wait for whatever the device does.
  pybind11::array download() const {
    cuda::check(cudaDeviceSynchronize(), "a kernel");
    pybind11::array_t<uint8_t> bytes({count_, static_cast<int64_t>(pitch())});
    peek(bytes.mutable_data(), rows_.data, static_cast<size_t>(bytes.nbytes()));
    for (int64_t r = 0; r < count_; ++r) {
      for (auto i = static_cast<int64_t>(width()); i < static_cast<int64_t>(pitch()); ++i) {
        if (*bytes.data(r, i) != 0xff) throw DeviceError("a kernel has written between two rows");
      }
    }
    const bool wide = rows_.element == cuda::Element::kFp32;
    return bytes[pybind11::make_tuple(
                     pybind11::ellipsis(),
                     pybind11::slice(0, static_cast<pybind11::ssize_t>(width()), 1))]
        .attr("copy")()
        .attr("view")(wide ? "float32" : "uint16");
  }

 private:
  static int64_t shape(const pybind11::array& array, int axis) {
    if (array.ndim() != 2 || !(array.flags() & pybind11::array::c_style)) {
      throw BatchError("an array must be dense and have two axes");
    }
    return array.shape(axis);
  }
  size_t width() const { return static_cast<size_t>(cols_ * cuda::bytes_of(rows_.element)); }
  size_t pitch() const { return static_cast<size_t>(rows_.stride * cuda::bytes_of(rows_.element)); }

  int64_t count_;
  int64_t cols_;
  cuda::DeviceMemory memory_;
  cuda::DeviceRows rows_;
};

}  // namespace bertrt::bindings
