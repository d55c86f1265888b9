#include "emulator/machine.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace bertrt::cuda::emulator {
namespace {

bool same(Site a, Site b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

std::string at(Site site) {
  const char* name = std::strrchr(site.file, '/');
  return std::string(name ? name + 1 : site.file) + ":" + std::to_string(site.line);
}

std::string hex(uintptr_t value) {
  char text[2 * sizeof(value) + 1];
  std::snprintf(text, sizeof(text), "%lx", static_cast<unsigned long>(value));
  return text;
}

}  // namespace

Machine::Machine() {
  stacks_ = static_cast<unsigned char*>(mmap(nullptr, kStacks * kStackBytes, PROT_NONE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (stacks_ == MAP_FAILED) throw std::bad_alloc();
  dl_iterate_phdr(&Machine::find_image, this);
}

// The constants of a kernel lie in the module that holds this function.
int Machine::find_image(dl_phdr_info* info, size_t, void* data) {
  auto* machine = static_cast<Machine*>(data);
  const auto here = reinterpret_cast<uintptr_t>(&Machine::find_image);
  uintptr_t begin = UINTPTR_MAX, end = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    if (header.p_type != PT_LOAD) continue;
    begin = std::min<uintptr_t>(begin, info->dlpi_addr + header.p_vaddr);
    end = std::max<uintptr_t>(end, info->dlpi_addr + header.p_vaddr + header.p_memsz);
  }
  if (here < begin || here >= end) return 0;
  machine->image_begin_ = begin;
  machine->image_end_ = end;
  return 1;
}

void Machine::run(const Launch& launch) {
  launch_ = &launch;
  const int64_t blocks = int64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  gridDim = launch.grid;
  blockDim = dim3(static_cast<unsigned>(launch.threads));
  fault_.clear();
  for (int64_t b = 0; b < blocks && fault_.empty(); b += launch.cluster) {
    run_cluster(settings().backwards ? blocks - launch.cluster - b : b);
  }
  if (!fault_.empty()) {
    // The other threads are left where they stood.
    for (Thread& thread : threads_) thread = Thread();
    throw Fault(fault_ + " (block " + std::to_string(blockIdx.x) + ", " +
                std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + ")");
  }
}

void Machine::run_cluster(int64_t first_block) {
  const auto of_block = static_cast<size_t>(launch_->threads);
  const size_t count = launch_->cluster * of_block;
  threads_.resize(count);
  at_cluster_barrier_ = 0;
  for (size_t rank = 0; rank < launch_->cluster; ++rank) {
    if (rank == blocks_.size()) blocks_.push_back(std::make_unique<Block>());
    Block& block = *blocks_[rank];
    const int64_t index = first_block + static_cast<int64_t>(rank);
    block.rank = static_cast<int>(rank);
    block.index = {static_cast<unsigned>(index % launch_->grid.x),
                   static_cast<unsigned>(index / launch_->grid.x % launch_->grid.y),
                   static_cast<unsigned>(index / launch_->grid.x / launch_->grid.y)};
    block.threads = threads_.data() + rank * of_block;
    block.left = launch_->threads;
    block.at_barrier = 0;
    block.warps.assign(of_block / kWarp, Warp());
    block.shared.begin_block(launch_->shared_bytes, launch_->threads);
    hopper::emulator::begin_block(block.rank, launch_->threads);
  }
  for (Thread& thread : threads_) {
    thread.state = State::kReady;
    thread.group = 0;
    thread.has_waited = !launch_->overlaps;
  }
  for (size_t done = 0; done < count;) {
    bool moved = false;
    for (size_t i = 0; i < count; ++i) {
      const size_t t = settings().backwards ? count - 1 - i : i;
      const State state = threads_[t].state;
      if (state != State::kReady && state != State::kPolling) continue;
      const uint64_t before = progress_;
      resume(t);
      if (!fault_.empty()) return;
      moved = moved || state == State::kReady || progress_ != before;
      if (threads_[t].state == State::kDone) ++done;
    }
    if (!moved) {
      fault_ = stuck();
      return;
    }
  }
  for (unsigned rank = 0; rank < launch_->cluster; ++rank) {
    hopper::emulator::end_block(static_cast<int>(rank));
  }
}

// Why no thread can go on.
std::string Machine::stuck() const {
  std::string what = "divergence:";
  const auto of_block = static_cast<size_t>(launch_->threads);
  for (size_t t = 0; t < threads_.size();) {
    const Thread& thread = threads_[t];
    const size_t first = t, end = (t / of_block + 1) * of_block;
    while (t < end && threads_[t].state == thread.state &&
           (thread.state == State::kDone || same(threads_[t].site, thread.site))) {
      ++t;
    }
    what += (first ? ", threads " : " threads ") + std::to_string(first % of_block) + " to " +
            std::to_string((t - 1) % of_block);
    if (launch_->cluster > 1) what += " of block " + std::to_string(first / of_block);
    if (thread.state == State::kDone) {
      what += " have ended";
    } else if (thread.state == State::kAtBarrier) {
      what += " wait at the barrier " + at(thread.site);
    } else if (thread.state == State::kAtClusterBarrier) {
      what += " wait at the cluster's barrier " + at(thread.site);
    } else if (thread.state == State::kPolling) {
      what += std::string(" wait for ") + thread.polls + " " + at(thread.site);
    } else {
      const Warp& warp = blocks_[first / of_block]->warps[first % of_block / kWarp];
      what += std::string(" wait at ") + warp.collective + " " + at(thread.site);
    }
  }
  return what;
}

// Fibers are born by makecontext and switched by longjmp, which unlike swapcontext makes no
// system call. A fiber outlives its thread: it runs the next block's, too.
void Machine::resume(size_t t) {
  const auto of_block = static_cast<size_t>(launch_->threads);
  block_ = blocks_[t / of_block].get();
  current_ = static_cast<int>(t % of_block);
  threadIdx = {static_cast<unsigned>(current_), 0, 0};
  blockIdx = block_->index;
  Thread& thread = here();
  if (_setjmp(scheduler_) == 0) {
    if (thread.started) _longjmp(thread.context, 1);
    thread.started = true;
    // The lowest page of a stack stays closed.
    unsigned char* const stack = stacks_ + t * kStackBytes + kPageBytes;
    mprotect(stack, kStackBytes - kPageBytes, PROT_READ | PROT_WRITE);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStackBytes - kPageBytes;
    context.uc_link = nullptr;
    makecontext(&context, &Machine::fiber, 0);
    setcontext(&context);
  }
  current_ = -1;
}

void Machine::fiber() {
  Machine& m = machine();
  for (;;) {
    m.launch_->run_thread(m.launch_->call.get());
    m.end_thread();
    m.leave();
  }
}

void Machine::end_thread() {
  if (!here().copies.empty()) fail("a cp.async that nobody has waited for");
  if (!here().has_waited) {
    fail("thread " + std::to_string(current_) + " ends and has not waited for the kernels before");
  }
  hopper::emulator::end_thread();
  here().state = State::kDone;
  if (--block_->left == 0 && block_->shared.may_be_reached()) {
    fail(
        "the block ends, and another has reached its shared memory with no barrier of the cluster "
        "between");
  }
}

// Back to the scheduler, until this thread is ready again.
void Machine::leave() {
  if (_setjmp(here().context) == 0) _longjmp(scheduler_, 1);
}

void Machine::wait(State state, Site site) {
  here().state = state;
  here().site = site;
  leave();
}

void Machine::syncthreads(Site site) {
  Thread* const threads = block_->threads;
  for (int t = 0; t < launch_->threads; ++t) {
    if (threads[t].state == State::kAtBarrier && !same(threads[t].site, site)) {
      fail("divergence: thread " + std::to_string(current_) + " is at the barrier " + at(site) +
           ", thread " + std::to_string(t) + " at the one of " + at(threads[t].site));
    }
  }
  if (++block_->at_barrier < launch_->threads) {
    wait(State::kAtBarrier, site);
    return;
  }
  block_->at_barrier = 0;
  block_->shared.begin_epoch();
  for (int t = 0; t < launch_->threads; ++t) {
    if (threads[t].state == State::kAtBarrier) threads[t].state = State::kReady;
  }
}

// Stricter than the device, which does not wait for threads that have ended.
void Machine::cluster_barrier(Site site) {
  if (++at_cluster_barrier_ < threads_.size()) {
    wait(State::kAtClusterBarrier, site);
    return;
  }
  at_cluster_barrier_ = 0;
  for (unsigned rank = 0; rank < launch_->cluster; ++rank) {
    blocks_[rank]->shared.begin_cluster_epoch();
  }
  for (Thread& thread : threads_) {
    if (thread.state == State::kAtClusterBarrier) thread.state = State::kReady;
  }
}

void Machine::reach_peer(unsigned rank) {
  const auto fail_of = [&](const std::string& whose) {
    fail("thread " + std::to_string(current_) + " reaches for block " + std::to_string(rank) +
         " of " + whose);
  };
  if (rank >= launch_->cluster) fail_of("a cluster of " + std::to_string(launch_->cluster));
  Block& peer = *blocks_[rank];
  if (&peer == block_) return;
  if (peer.left == 0) fail_of("its cluster, which has ended");
  peer.shared.reach_from_elsewhere();
}

const void* Machine::read_peer(const void* p, unsigned rank) {
  reach_peer(rank);
  if (!block_->shared.holds(p)) fail_access(false, p, "which is not shared memory");
  require_alignment(p, 16);
  const size_t first = shared_offset(p);
  Block& peer = *blocks_[rank];
  if (&peer == block_ || first + 16 > launch_->shared_bytes) {
    touch_shared(p, 16, false, current_);
  } else {
    const std::string wrong = peer.shared.touch_from(block_->rank, first, 16);
    if (!wrong.empty()) fail("thread " + std::to_string(current_) + " reads " + wrong);
  }
  return peer.shared.data() + first;
}

void Machine::collective(const char* name, Site site, void* lane, WarpWork work) {
  Warp& warp = block_->warps[static_cast<size_t>(current_ / kWarp)];
  if (warp.arrived == 0) {
    warp.collective = name;
    warp.site = site;
  } else if (std::strcmp(warp.collective, name) != 0 || !same(warp.site, site)) {
    fail("divergence: thread " + std::to_string(current_) + " is at " + name + " " + at(site) +
         ", others of its warp at " + warp.collective + " " + at(warp.site));
  }
  warp.lanes[current_ % kWarp] = lane;
  if (++warp.arrived < kWarp) {
    wait(State::kAtCollective, site);
    return;
  }
  // A copy on this fiber's stack, which `work` may read.
  void* lanes[kWarp];
  std::copy(warp.lanes, warp.lanes + kWarp, lanes);
  work(lanes);
  warp.arrived = 0;
  const int first = current_ / kWarp * kWarp;
  for (int t = first; t < first + kWarp; ++t) {
    block_->threads[t].state = State::kReady;
  }
}

void Machine::copy(void* shared, const void* global, bool there) {
  require_alignment(shared, 16);
  require_alignment(global, 16);
  if (!block_->shared.holds(shared)) {
    fail_access(true, shared, "by cp.async, which is not shared memory");
  }
  touch_shared(shared, 16, true, current_);
  touch_global(global, 16, false);
  block_->shared.send(shared_offset(shared));
  hopper::emulator::begin_copy(shared_offset(shared));
  Thread& thread = here();
  thread.copies.push_back({static_cast<unsigned char*>(shared), global, there, thread.group});
}

void Machine::wait_for_copies(int groups) {
  Thread& thread = here();
  const auto landed =
      std::stable_partition(thread.copies.begin(), thread.copies.end(),
                            [&](const Copy& copy) { return copy.group >= thread.group - groups; });
  for (auto copy = landed; copy != thread.copies.end(); ++copy) {
    std::memset(copy->to, 0, 16);
    if (copy->there) std::memcpy(copy->to, copy->from, 16);
    block_->shared.land(shared_offset(copy->to), current_);
    hopper::emulator::end_copy(shared_offset(copy->to));
  }
  thread.copies.erase(landed, thread.copies.end());
}

void Machine::load_matrix_row(const void* row, int thread) {
  if (!block_->shared.holds(row))
    fail_access(false, row, "by ldmatrix, which is not shared memory");
  require_alignment(row, 16);
  touch_shared(row, 16, false, thread);
}

void Machine::require_alignment(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
    fail_access(false, p, "whose address must be a multiple of " + std::to_string(bytes));
  }
}

bool Machine::touch_global(const void* p, size_t bytes, bool write, bool may_be_unwritten) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const Allocation* allocation = find_allocation(address);
  if (!allocation) fail_access(write, p, "which is no device memory in use");
  if (address + bytes > allocation->end) {
    fail_access(write, p, "past the end of an allocation");
  }
  if (allocation->device != launch_->device) {
    fail_access(write, p, "the memory of device " + std::to_string(allocation->device));
  }
  if (!here().has_waited && (write || allocation->kernels_write)) {
    fail_access(write, p, "and has not waited for the kernels before, which may write there");
  }
  if (write) {
    allocation->write(address, bytes);
    allocation->kernels_write = true;
  } else if (allocation->first_unwritten(address, bytes) != allocation->end) {
    if (may_be_unwritten) return false;
    fail_access(write, p, "to which nothing has been written");
  }
  return true;
}

void Machine::touch_shared(const void* p, size_t bytes, bool write, int thread) {
  const size_t first = shared_offset(p);
  if (first + bytes > launch_->shared_bytes) {
    fail_access(write, p,
                "past the end of shared memory (byte " + std::to_string(first) + " of " +
                    std::to_string(launch_->shared_bytes) + ")");
  }
  const std::string wrong = block_->shared.touch(first, bytes, write, thread);
  if (!wrong.empty()) fail(wrong);
}

void Machine::fail(const std::string& what) {
  reports_ = false;
  fault_ = what;
  if (code_) {
    // For addr2line.
    fault_ += " [code at +0x" + hex(reinterpret_cast<uintptr_t>(code_) - image_begin_) + "]";
  }
  code_ = nullptr;
  _longjmp(scheduler_, 1);
}

void Machine::fail_access(bool write, const void* p, const std::string& why) {
  fail("thread " + std::to_string(current_) + (write ? " writes" : " reads") + " at 0x" +
       hex(reinterpret_cast<uintptr_t>(p)) + ", " + why);
}

void run(const Launch& launch) { machine().run(launch); }

}  // namespace bertrt::cuda::emulator
