// How float32 weights become 8-bit integers, on every device; bertrt/plan/quantized.py does the
// same for weights that are stored so.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

namespace bertrt {

// The steps of the weights of one output, -127 to 127.
struct WeightSteps {
  float scale = std::numeric_limits<float>::quiet_NaN();  // what a step is worth
  float inverse = 0.0f;

  // largest: the bits of the largest magnitude, which compare as the numbers do. NaN where one is
  // not finite, as for a row of values: nothing plausible may come of it.
  explicit WeightSteps(uint32_t largest) {
    constexpr uint32_t kInfinity = 0x7f800000;
    if (largest >= kInfinity) return;
    float limit;
    std::memcpy(&limit, &largest, sizeof(limit));
    scale = limit / 127.0f;
    // Steps that would be denormals are zeros, in whatever mode the thread computes.
    if (scale < std::numeric_limits<float>::min()) scale = 0.0f;
    inverse = scale > 0.0f ? 127.0f / limit : 0.0f;
  }
  WeightSteps() = default;

  bool finite() const { return scale == scale; }
};

// The bits of |x|.
inline uint32_t magnitude_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits & 0x7fffffff;
}

// The nearest whole number, ties to even, of at most 2^22: what is added leaves no bits for less.
// Unlike a call of the library's it can be done for several numbers at once.
inline int8_t to_step(float x) {
  constexpr float kShift = 3 << 22;
  return static_cast<int8_t>(static_cast<int32_t>(x + kShift - kShift));
}

}  // namespace bertrt
