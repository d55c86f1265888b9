// A GPU on the CPU, for tests where there is none: it runs the sources of the kernels, compiled by
// the host compiler, and holds them to the rules of the device.
//
// The threads of a block are fibers of one thread of the CPU. Each runs until it waits for others,
// in a fixed order, forwards or backwards; blocks run one after the other, those of a cluster side
// by side. Kernels are compiled
// with -fsanitize=thread, not for its runtime but for the call that it puts before each access to
// memory: the emulator is what it calls. Faults that it finds:
//
//   - lanes of a warp, or threads of a block, that are not all at the same barrier, shuffle or
//     other collective, some having ended among them;
//   - an access outside what cudaMalloc and the launch gave, to freed memory, to the host's, to
//     another device's, or one that is not aligned to its size;
//   - memory of the device read, or copied from it, before anything was written there, and shared
//     memory before anything was written there in this block;
//   - shared memory that two threads touch, one of them writing, with no barrier between;
//   - shared memory touched while a cp.async is on its way there: its data land in the wait, and
//     not before; a cp.async that nobody has waited for at the kernel's end;
//   - of clusters: a barrier that not all threads of all blocks reach, none having ended; another
//     block's shared memory that is read with no barrier of the cluster behind its writes, or
//     written with none behind such a read, or whose block has ended, or may while it is read;
//     a block that the cluster has not;
//   - what the hardware would refuse: too many threads, too much shared memory, too large a grid, a
//     cluster of more than 8 blocks, or that is no divisor of the grid;
//   - in a launch that overlaps the one before it: a thread that ends and has not waited for the
//     kernels before, or that before its wait writes, or reads memory that kernels write;
//   - a copy, in a graph that is launched again, of memory that has been freed meanwhile;
//   - of TMA, its barriers and wgmma, what hopper.h says.
//
// A capture takes the launches with copies of their arguments, and breaks at a call that CUDA does
// not allow in one (cudaStreamCaptureModeThreadLocal). What is not found: races in global memory,
// which show as results that differ between the two orders; accesses inside a call of memcpy that
// the compiler does not expand. Kernels have no atomics: they would not link.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "cuda_runtime_api.h"

namespace bertrt::cuda::emulator {

// "CUDA C++ Programming Guide", table "Technical Specifications per Compute Capability".
constexpr int kMaxThreads = 1024;
constexpr int kMaxCluster = 8;                 // blocks, without asking
constexpr size_t kMaxSharedBytes = 227 << 10;  // of 9.0; 163 KiB on 8.0

// What a kernel did wrong.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Launch {
  // The kernel with its arguments, which is all of the host's memory that a thread may read.
  std::shared_ptr<const void> call;
  size_t call_bytes;
  void (*run_thread)(const void* call);
  unsigned cluster;  // blocks of one, neighbours along x
  dim3 grid;
  int threads;
  size_t shared_bytes;
  bool overlaps = false;  // with the kernel before it
  int device = 0;
};

// Runs every block. Raises Fault.
void run(const Launch& launch);

// Puts a kernel into a stream.
cudaError_t enqueue(Launch launch, cudaStream_t stream);

// Memory of a device, from `begin` to before `end`, and of each of its bytes whether anything was
// written there since cudaMalloc: what compute-sanitizer's initcheck keeps.
struct Allocation {
  uintptr_t begin = 0;
  uintptr_t end = 0;
  int device = 0;
  std::shared_ptr<bool[]> written;
  mutable bool kernels_write = false;  // some kernel has

  // Of bytes of it, which are written now; the first that nobody has written, or `end`.
  void write(uintptr_t address, size_t bytes) const;
  uintptr_t first_unwritten(uintptr_t address, size_t bytes) const;
};
// The allocation that holds an address, or null.
const Allocation* find_allocation(uintptr_t address);

// A device's memory as it is, written or not: for tests.
void peek(void* to, const void* device_memory, size_t bytes);

// Devices as they come: two, with 1 GiB each, whose threads run forwards. Waits for and forgets
// whatever the devices were doing, and the fault of a kernel, after which a device does nothing
// more. Memory in use stays.
struct Settings {
  int devices = 2;
  size_t memory_bytes = size_t{1} << 30;  // of each
  bool backwards = false;
  // A call that fails: "cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate",
  // "cudaGraphLaunch", or "launch in a capture", of the third kernel.
  std::string fails;
  int capability = 89;      // 10 * major + minor
  bool hopper = true;       // whether they run Hopper's kernels
  int multiprocessors = 2;  // as kernels' launches see them
};
void reset(const Settings& settings);
const Settings& settings();

// Bytes that are allocated on a device.
size_t bytes_in_use(int device);
// Graphs that could be launched.
size_t graphs_alive();

}  // namespace bertrt::cuda::emulator
