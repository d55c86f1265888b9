// Passes that are kept for the next part of the same shape.
#pragma once

#include <algorithm>
#include <cstddef>
#include <list>
#include <vector>

#include "cuda/part.h"

namespace bertrt::cuda {

// A pass for the parts of one shape, and its graph, once it has been captured.
struct Prepared {
  Prepared(const Model& model, const std::vector<int>& wanted_, const Shape& shape_)
      : wanted(wanted_), shape(shape_), part(model, wanted_, shape_) {}

  const std::vector<int> wanted;
  const Shape shape;
  Part part;
  CapturedGraph graph;
  bool has_run = false;
};

// A workspace's passes: at most kMost, of which the one that was longest without use goes.
class PreparedParts {
 public:
  // More than the buckets of the lengths that one service sees; a graph of BERT base's 87 launches
  // takes some 100 KiB of the host's memory, and of the device's.
  static constexpr size_t kMost = 48;

  Prepared& get(const Model& model, const std::vector<int>& wanted, const Shape& shape) {
    const auto found = std::find_if(parts_.begin(), parts_.end(), [&](const Prepared& part) {
      return part.shape == shape && part.wanted == wanted;
    });
    if (found != parts_.end()) {
      parts_.splice(parts_.begin(), parts_, found);
    } else {
      parts_.emplace_front(model, wanted, shape);
      if (parts_.size() > kMost) parts_.pop_back();
    }
    return parts_.front();
  }

  // What was captured holds for memory that is no more.
  void drop_graphs() {
    for (Prepared& part : parts_) part.graph = CapturedGraph();
  }

  size_t graphs() const {
    return static_cast<size_t>(
        std::count_if(parts_.begin(), parts_.end(),
                      [](const Prepared& part) { return static_cast<bool>(part.graph); }));
  }

 private:
  std::list<Prepared> parts_;  // the one used last first
};

}  // namespace bertrt::cuda
