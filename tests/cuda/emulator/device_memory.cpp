// Memory of the emulated devices, pinned memory, and copies between them.
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "emulator/runtime.h"

namespace bertrt::cuda::emulator {

const Allocation* find_allocation(uintptr_t address) {
  Runtime& r = runtime();
  auto& [granule, cached] = r.cache[address / kAlignment % Runtime::kCached];
  if (cached && granule == address / kAlignment && address < cached->end) return cached;
  auto next = r.device_memory.upper_bound(address);
  if (next == r.device_memory.begin()) return nullptr;
  const Allocation& found = std::prev(next)->second;
  if (address >= found.end) return nullptr;
  granule = address / kAlignment;
  cached = &found;
  return &found;
}

void Allocation::write(uintptr_t address, size_t bytes) const {
  std::memset(&written[address - begin], true, bytes);
}

uintptr_t Allocation::first_unwritten(uintptr_t address, size_t bytes) const {
  const bool* first = &written[address - begin];
  const void* found = std::memchr(first, false, bytes);
  return found ? address + static_cast<size_t>(static_cast<const bool*>(found) - first) : end;
}

void peek(void* to, const void* device_memory, size_t bytes) {
  const Lock lock;
  std::memcpy(to, device_memory, bytes);
}

size_t bytes_in_use(int device) {
  Runtime& r = runtime();
  const Lock lock;
  const auto index = static_cast<size_t>(device);
  return index < r.in_use.size() ? r.in_use[index] : 0;
}

namespace {

constexpr unsigned char kPoison = 0xff;  // NaN in every element type

bool in_device_memory(const void* p, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const Allocation* allocation = find_allocation(address);
  return allocation && address + bytes <= allocation->end;
}

bool pinned(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const auto& memory = runtime().pinned_memory;
  auto next = memory.upper_bound(address);
  return next != memory.begin() && address < std::prev(next)->first + std::prev(next)->second;
}

// Whether a pointer is what the kind of a copy says.
bool on_side(const void* p, size_t bytes, bool device) {
  return device ? in_device_memory(p, bytes) : !find_allocation(reinterpret_cast<uintptr_t>(p));
}

// Copies a row of bytes. Between two devices' memory goes what was written with what was not; the
// host gets none that nobody has written. Raises Fault.
void copy_row(char* to, const char* from, size_t bytes) {
  const auto target = reinterpret_cast<uintptr_t>(to), source = reinterpret_cast<uintptr_t>(from);
  const Allocation* const here = find_allocation(target);
  const Allocation* const there = find_allocation(source);
  if (there && !here) {
    const uintptr_t unwritten = there->first_unwritten(source, bytes);
    if (unwritten != there->end) {
      throw Fault("a copy of " + std::to_string(bytes) + " bytes to the host reads byte " +
                  std::to_string(unwritten - source) + ", to which nothing has been written");
    }
  }
  if (here && there) {
    std::memmove(&here->written[target - here->begin], &there->written[source - there->begin],
                 bytes);
  } else if (here) {
    here->write(target, bytes);
  }
  std::memmove(to, from, bytes);
}

}  // namespace
}  // namespace bertrt::cuda::emulator

using namespace bertrt::cuda::emulator;

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const Lock lock;
  *total = runtime().settings.memory_bytes;
  const size_t used = bytes_in_use(current_device);
  *free = *total > used ? *total - used : 0;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const Lock lock;
  Runtime& r = runtime();
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  const auto device = static_cast<size_t>(current_device);
  if (r.in_use.size() <= device) r.in_use.resize(device + 1);
  const size_t whole = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (bytes > r.settings.memory_bytes || r.in_use[device] + whole > r.settings.memory_bytes) {
    return report(cudaErrorMemoryAllocation);
  }
  void* const found = std::aligned_alloc(kAlignment, whole);
  if (!found) return report(cudaErrorMemoryAllocation);
  std::memset(found, kPoison, whole);
  const auto begin = reinterpret_cast<uintptr_t>(found);
  r.device_memory[begin] = {begin, begin + bytes, current_device,
                            std::shared_ptr<bool[]>(new bool[bytes]())};
  r.in_use[device] += whole;
  *memory = found;
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  const Lock lock;
  Runtime& r = runtime();
  if (!memory) return cudaSuccess;
  const auto found = r.device_memory.find(reinterpret_cast<uintptr_t>(memory));
  if (found == r.device_memory.end()) return report(cudaErrorInvalidValue);
  const cudaError_t error = run_all();
  const Allocation allocation = found->second;
  const size_t whole =
      (allocation.end - allocation.begin + kAlignment - 1) / kAlignment * kAlignment;
  r.in_use[static_cast<size_t>(allocation.device)] -= whole;
  r.device_memory.erase(found);
  r.cache = {};
  std::free(memory);
  return report(error);
}

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  const Lock lock;
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  *memory = std::malloc(bytes);
  if (!*memory) return report(cudaErrorMemoryAllocation);
  std::memset(*memory, kPoison, bytes);
  runtime().pinned_memory[reinterpret_cast<uintptr_t>(*memory)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** memory, size_t bytes) { return cudaHostAlloc(memory, bytes, 0); }

cudaError_t cudaFreeHost(void* memory) {
  const Lock lock;
  if (!memory) return cudaSuccess;
  const cudaError_t error = run_all();
  if (!runtime().pinned_memory.erase(reinterpret_cast<uintptr_t>(memory))) {
    return report(cudaErrorInvalidValue);
  }
  std::free(memory);
  return report(error);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  const Lock lock;
  if (width == 0 || height == 0) return cudaSuccess;
  if (to_pitch < width || from_pitch < width) return report(cudaErrorInvalidValue);
  if (kind != cudaMemcpyDefault) {
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (!on_side(to, (height - 1) * to_pitch + width, to_device) ||
        !on_side(from, (height - 1) * from_pitch + width, from_device)) {
      return report(cudaErrorInvalidValue);
    }
  }
  const auto paged = [](const void* p) {
    return !find_allocation(reinterpret_cast<uintptr_t>(p)) && !pinned(p);
  };
  const cudaError_t error = put(stream, [=] {
    try {
      for (size_t row = 0; row < height; ++row) {
        copy_row(static_cast<char*>(to) + row * to_pitch,
                 static_cast<const char*>(from) + row * from_pitch, width);
      }
    } catch (const Fault& fault) {
      runtime().fault = fault.what();
      return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
  });
  // Memory that is not pinned is copied before the call returns.
  if (error == cudaSuccess && stream && (paged(to) || paged(from))) {
    return report(run_until(stream, stream->end()));
  }
  return report(error);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                         size_t width, size_t height, cudaMemcpyKind kind) {
  return cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, height, kind, nullptr);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemsetAsync(void* memory, int byte, size_t bytes, cudaStream_t stream) {
  const Lock lock;
  if (bytes == 0) return cudaSuccess;
  if (!in_device_memory(memory, bytes)) return report(cudaErrorInvalidValue);
  return report(put(stream, [=] {
    const auto address = reinterpret_cast<uintptr_t>(memory);
    find_allocation(address)->write(address, bytes);
    std::memset(memory, byte, bytes);
    return cudaSuccess;
  }));
}
cudaError_t cudaMemset(void* memory, int byte, size_t bytes) {
  return cudaMemsetAsync(memory, byte, bytes, nullptr);
}
