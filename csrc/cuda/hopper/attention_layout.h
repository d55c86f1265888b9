// The maps of Hopper's attention as plain functions: where keys and values stand, what describes
// them to wgmma, who holds which part of an operand, and who does what, when. Beside layout.h.
#pragma once

#include "cuda/hopper/layout.h"

namespace bertrt::cuda::hopper {

constexpr int kTileQueries = 64;  // of a warpgroup: the rows of a wgmma
constexpr int kTileKeys = 64;

// Where the 16 bytes `chunk` of a key or a value stand, in bytes from its tile's beginning. A row
// is a head's elements, 64 or 128 bytes, and swizzled over as many ("Swizzling Modes": 64 bytes,
// bits 4 and 5 of the address change by bits 7 and 8; 128 bytes, bits 4 to 6 by bits 7 to 9).
BERTRT_BOTH constexpr unsigned head_swizzled(unsigned row_bytes, unsigned row, unsigned chunk) {
  const unsigned turn = row_bytes == 128 ? row % 8 : row / 2 % 4;
  return row * row_bytes + ((chunk ^ turn) << 4);
}

// The matrix descriptor of such a tile, whose rows of eight are 8 * row_bytes from the next eight:
// of keys, K-major, 16 elements of the head on from a multiple of 32 bytes within the row; and of
// values, MN-major, whose 16 keys of depth begin at a multiple of 16 rows. The leading offset is
// used by neither, since no row is longer than the swizzle.
BERTRT_BOTH constexpr uint64_t head_descriptor(unsigned row_bytes, uint32_t address) {
  const uint64_t mode = row_bytes == 128 ? 1 : 2;
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t{1} << 16 |
         uint64_t{8 * row_bytes >> 4} << 32 | mode << 62;
}

// The row and column of element `half` of register `i` of a left operand in registers, 64 x 16
// ("Register Fragments and Shared Memory Matrix Layouts", A). Sums 8 k + 2 i and the one behind
// (sum_place) of 64 columns stand as register i of step k does.
BERTRT_BOTH constexpr Place left_place(int thread, int i, int half) {
  return {thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8, i / 2 * 8 + thread % 4 * 2 + half};
}

// The items of a launch: 128 queries of one text and head each, as far as there are any; or, where
// no text has more than 64, those of two heads. Neighbours read the same keys, then those of the
// next head.
struct Items {
  unsigned heads;         // of the model
  unsigned item_heads;    // 1 or 2
  unsigned query_blocks;  // of the longest text
};
BERTRT_BOTH constexpr Items items_of(int64_t heads, int64_t longest) {
  return {static_cast<unsigned>(heads), longest > kTileQueries ? 1U : 2U,
          static_cast<unsigned>((longest + 2 * kTileQueries - 1) / (2 * kTileQueries))};
}
BERTRT_BOTH constexpr unsigned items_of_text(const Items& items) {
  return (items.heads + items.item_heads - 1) / items.item_heads * items.query_blocks;
}

struct Item {
  int seq;
  int head;
  int first;  // of the queries
};
BERTRT_BOTH constexpr Item item_place(const Items& items, unsigned item) {
  const unsigned of_text = items_of_text(items);
  const unsigned within = item % of_text;
  return {static_cast<int>(item / of_text),
          static_cast<int>(within / items.query_blocks * items.item_heads),
          static_cast<int>(within % items.query_blocks) * 2 * kTileQueries};
}

// The item that a block does in its round. Blocks change places from round to round: items without
// queries come every so many, and would otherwise all be the same blocks'.
BERTRT_BOTH constexpr unsigned item_of(unsigned block, unsigned round, unsigned blocks) {
  return round * blocks + (block + round) % blocks;
}

// What of an item one of its two warpgroups does, `left` queries being left from its first on. Of
// more than 64 each takes some, and they share the head's keys. Of fewer, one warpgroup takes them
// all and the other those of the next head: keys come in two streams by turns, and the item of the
// next head is empty. A query's keys are the same 64 at a time in any case.
struct Share {
  int streams;  // of keys, of heads from the item's on; 0: there is nothing to do
  int stream;   // this warpgroup's
  int skipped;  // queries of the item before its own
  int queries;  // 0: none are its own
};
BERTRT_BOTH constexpr Share share_of(int group, int left, int head, int heads) {
  if (left <= 0) return {0, 0, 0, 0};
  if (left > kTileQueries) {
    const int mine = left - group * kTileQueries;
    return {1, 0, group * kTileQueries, mine < kTileQueries ? mine : kTileQueries};
  }
  if (head % 2 != 0) return {0, 0, 0, 0};
  const int streams = head + 1 < heads ? 2 : 1;
  return {streams, group < streams ? group : 0, 0, group < streams ? left : 0};
}

}  // namespace bertrt::cuda::hopper
