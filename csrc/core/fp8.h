// How float32 becomes e4m3, 8-bit floating point: a sign, four bits of exponent (bias 7), three of
// fraction; numbers from 2^-9 to 448, no infinities, one NaN of each sign (Micikevicius et al.,
// "FP8 Formats for Deep Learning", arXiv:2209.05433). The same for weights on the host and rows on
// the device; bertrt/plan/quantized.py does the same for weights that are stored so.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#ifdef __CUDACC__
#define BERTRT_HOST_DEVICE __host__ __device__
#else
#define BERTRT_HOST_DEVICE
#endif

namespace bertrt {

constexpr float kLargestE4m3 = 448.0f;

// The nearest e4m3, ties to even. What is beyond the largest, infinity too, becomes the largest of
// its sign; NaN stays NaN. On integers but for one sum: the same in whatever mode the thread
// computes.
BERTRT_HOST_DEVICE inline uint8_t to_e4m3(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  const uint32_t sign = bits >> 24 & 0x80;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return static_cast<uint8_t>(sign | 0x7f);
  if (bits >= 0x43e00000) return static_cast<uint8_t>(sign | 0x7e);
  if (bits < 0x3c800000) {
    // Below 2^-6 steps are of 2^-9: adding 2^14 leaves them in the last bits of the sum, rounded.
    float magnitude;
    memcpy(&magnitude, &bits, sizeof(magnitude));
    magnitude += 16384.0f;
    memcpy(&bits, &magnitude, sizeof(bits));
    return static_cast<uint8_t>(sign | (bits - 0x46800000));
  }
  // The exponent's bias goes from 127 to 7, 20 bits of the fraction go.
  bits += 0xc4000000u + 0x7ffffu + (bits >> 20 & 1);
  return static_cast<uint8_t>(sign | bits >> 20);
}

// What e4m3 numbers of one row, or of the weights of one output, are worth: the largest magnitude
// becomes the largest e4m3.
struct E4m3Scale {
  float scale = 0.0f;
  float inverse = 0.0f;

  // largest: finite. Numbers are zeros where the scale would be a denormal, in whatever mode the
  // thread computes.
  BERTRT_HOST_DEVICE explicit E4m3Scale(float largest) {
    constexpr float kSmallestNormal = 1.17549435e-38f;
    const float worth = largest / kLargestE4m3;
    if (worth < kSmallestNormal) return;
    scale = worth;
    inverse = kLargestE4m3 / largest;
  }
};

}  // namespace bertrt
