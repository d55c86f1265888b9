// What the modules of every device take from Python and give to it in the same way.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "plan/plan.h"
#include "runtime/graph.h"

namespace bertrt::bindings {

// The dictionary of plan.json with the arrays that it names, which the plan's weights own. What is
// no array, and has a dtype and a shape, is given to `fetch`, in a list, when it is needed, for
// arrays. The plan may be used without the GIL, the arguments having to outlive it, and goes with
// it. A field that is missing or of another type is a PlanError that names it.
plan::Plan read_plan(const pybind11::dict& dict, const pybind11::dict& arrays,
                     const pybind11::object& fetch);

struct BatchArrays {
  const IntArray& token_ids;
  const IntArray& token_types;
  const IntArray& cu_seqlens;
  const std::optional<IntArray>& masked_positions;
  const std::optional<IntArray>& attended;
};

using Runner = std::function<void(const PackedBatch&, const std::vector<Output>&,
                                  const std::function<void()>& between_steps)>;

// Arrays for the outputs by name, written by `run` without the GIL. Between steps it may have
// Python's signal handlers run, whose exceptions end it. Throws BatchError.
pybind11::dict run_packed(const Graph& graph, const BatchArrays& arrays,
                          const std::vector<std::string>& outputs, const Runner& run);

std::vector<pybind11::tuple> step_tuples(const std::vector<StepTrace>& steps);

// Has the module's errors become the Python exceptions of the same meaning.
void translate_errors();

}  // namespace bertrt::bindings
