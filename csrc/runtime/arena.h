// Where the activations of one run lie in one block of memory.
#pragma once

#include <cstdint>
#include <vector>

namespace bertrt {

// A value that lives from the step that makes it to the last step that reads it.
struct Lifetime {
  int64_t size;
  int first;
  int last;
  int64_t offset;  // set by assign_offsets
};

// The size of so many rows of so many values each. Throws std::bad_alloc where no machine has the
// memory, so that no sum of such sizes overflows.
int64_t room(int64_t rows, int64_t row_size);

// Gives values whose lives overlap disjoint places, the largest value first and each as low as it
// fits. Returns the size of the whole.
int64_t assign_offsets(std::vector<Lifetime>& values);

}  // namespace bertrt
