// How the depth of a product is split: the parts whose sums begin at zero each, and are added in
// their order in fp32.
#pragma once

#include "cuda/both.h"

namespace bertrt::cuda {

// The parts of a product with so many inputs. It has few tiles where its batch has few rows, and
// one block that walks a tile's whole depth is then what all others wait for; several may take a
// part each. BERT's feed-forward layers end with 3,072 or 4,096 inputs, of which a part has no less
// than the 768 or 1,024 of all its other products: those are one part. It is a function of the
// inputs alone, so that the bits of a row depend neither on its batch nor on who walks which part.
constexpr int kMostParts = 4;
BERTRT_BOTH constexpr int depth_parts(int inputs) { return inputs >= 2048 ? kMostParts : 1; }

// The inputs at whose multiples parts begin: a step of Hopper's products in 16 bits, two of
// mma.sync's.
constexpr int kPartStep = 64;

// The first input of a part, a multiple of `step`, and of part `parts` the end: parts differ by one
// step at most, and the last may end within one. None is empty where there are as many steps as
// parts.
BERTRT_BOTH constexpr int part_begin(int inputs, int parts, int part, int step = kPartStep) {
  const int steps = inputs / step + (inputs % step != 0);
  return part == parts ? inputs : steps * part / parts * step;
}

}  // namespace bertrt::cuda
