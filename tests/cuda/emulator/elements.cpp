// fp16 and bf16, from and to float; e4m3, to float.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator/device.h"

namespace bertrt::cuda::emulator {

float fp16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = bits >> 10 & 31;
  const uint32_t fraction = bits & 1023;
  float size;
  if (exponent == 0) {
    size = static_cast<float>(fraction) * 0x1p-24f;
  } else {
    const uint32_t wide = (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    std::memcpy(&size, &wide, sizeof(size));
  }
  return sign ? -size : size;
}

float bf16_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

float e4m3_to_float(uint8_t bits) {
  const int exponent = bits >> 3 & 15, fraction = bits & 7;
  float size;
  if ((bits & 0x7f) == 0x7f) {
    size = std::nanf("");
  } else if (exponent == 0) {
    size = std::ldexp(static_cast<float>(fraction), -9);
  } else {
    size = std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
  }
  return bits & 0x80 ? -size : size;
}

uint16_t float_to_fp16(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  if (size == 0.0f) return sign;
  if (size >= 65520.0f) return sign | 0x7c00;
  int exponent;
  std::frexp(size, &exponent);
  exponent = std::max(exponent, -13);  // below, numbers are multiples of 2^-24
  // In units of the last of 11 bits; exact, so that the one rounding is nearbyint's, ties to even.
  const auto units = static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 11 - exponent)));
  // A unit more carries into the exponent as it should.
  return static_cast<uint16_t>(sign | (((exponent + 13) << 10) + units));
}

uint16_t float_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (std::isnan(value)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace bertrt::cuda::emulator
