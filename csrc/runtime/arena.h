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

// Gives values whose lives overlap disjoint places, the largest value first and each as low as it
// fits. Returns the size of the whole.
int64_t assign_offsets(std::vector<Lifetime>& values);

}  // namespace bertrt
