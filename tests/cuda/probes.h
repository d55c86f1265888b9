// Small kernels that try the emulator: primitives on their own, and every rule broken once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/kernels.h"

namespace bertrt::cuda::probes {

// out[i] = probe(x), with 64 threads: x and out have 64 floats. Raises std::out_of_range if there
// is no such probe.
void run(const std::string& name, const float* x, float* out, Stream stream);
std::vector<std::string> names();

// Likewise, behind a kernel that copies x to `between`, which it overlaps; or, if `between` is
// null, alone on x.
void run_overlapping(const std::string& name, const float* x, float* between, float* out);

// Of Hopper's primitives: out, 128 floats, is the first row of tile * tile^T over the first 16 of
// the depth, of a tile of 128 x 64 fp16. Names likewise.
void run_hopper(const std::string& name, const uint16_t* tile, float* out);
std::vector<std::string> hopper_names();

// Of products of registers: out has 64 floats of the first row of a * tile^T over 16 of the depth,
// and 64 of a * the tile's first 16 rows, a being the first 16 columns of a tile of 64 x 64 fp16.
void run_hopper_registers(const std::string& name, const uint16_t* tile, float* out);
std::vector<std::string> hopper_register_names();

// Two clusters of four blocks with 64 threads each: a block's 64 floats of out are those that the
// next block of its cluster has of x, whose shared memory it reads. Names likewise.
void run_cluster(const std::string& name, const float* x, float* out);
std::vector<std::string> cluster_names();

// As run_hopper, by two blocks of a cluster that copy half of the tile each to both.
void run_multicast(const std::string& name, const uint16_t* tile, float* out);
std::vector<std::string> multicast_names();

// A kernel that does nothing.
void start_empty(unsigned cluster, int64_t blocks, int threads, size_t shared_bytes, Stream stream);

// One warp: sums += a * b^T with a of 16 x 16, b of 8 x 16 and sums of 16 x 8, by way of ldmatrix.
// If transposed, b is given as 16 x 8 (8 and no pad) and read by ldmatrix.trans.
void product(Element element, const uint16_t* a, const uint16_t* b, bool transposed, float* sums,
             Stream stream);

// The conversions, element by element.
void narrow(Element element, const float* x, int64_t count, uint16_t* out, Stream stream);
void widen(Element element, const uint16_t* x, int64_t count, float* out, Stream stream);

}  // namespace bertrt::cuda::probes
