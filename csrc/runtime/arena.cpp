#include "runtime/arena.h"

#include <algorithm>
#include <new>

namespace bertrt {

int64_t room(int64_t rows, int64_t row_size) {
  constexpr int64_t kMost = int64_t{1} << 44;
  if (row_size > 0 && rows > kMost / row_size) throw std::bad_alloc();
  return rows * row_size;
}

int64_t assign_offsets(std::vector<Lifetime>& values) {
  std::vector<Lifetime*> order;
  for (Lifetime& value : values) order.push_back(&value);
  std::stable_sort(order.begin(), order.end(),
                   [](const Lifetime* a, const Lifetime* b) { return a->size > b->size; });
  int64_t total = 0;
  std::vector<const Lifetime*> placed;  // by offset
  for (Lifetime* value : order) {
    int64_t offset = 0;
    for (const Lifetime* other : placed) {
      if (other->last < value->first || value->last < other->first) continue;
      if (offset + value->size <= other->offset) break;
      offset = std::max(offset, other->offset + other->size);
    }
    value->offset = offset;
    total = std::max(total, offset + value->size);
    const auto at =
        std::upper_bound(placed.begin(), placed.end(), offset,
                         [](int64_t o, const Lifetime* other) { return o < other->offset; });
    placed.insert(at, value);
  }
  return total;
}

}  // namespace bertrt
