// Errors that cross the binding: each becomes the Python exception of the same meaning.
#pragma once

#include <stdexcept>

namespace bertrt {

// The plan is inconsistent: bertrt.ModelFormatError.
struct PlanError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The batch does not fit the plan: bertrt.InvalidInputError.
struct BatchError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The device or instruction set cannot be used: bertrt.DeviceError.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace bertrt
