// The elements that rows and weights on a GPU are made of, beside float: storage only, arithmetic
// is in fp32.
#pragma once

#include <cstdint>

namespace bertrt::cuda {

struct Fp16 {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};
// Of products alone: their rows and weights.
struct E4m3 {
  uint8_t bits;
};

}  // namespace bertrt::cuda
