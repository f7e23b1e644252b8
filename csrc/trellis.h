// Trellis codes (docs/format.md): which level a stored code stands for, given the codes before it in its row.
#pragma once

#include <cstdint>

namespace potq {
namespace {  // a copy for every file: see kernels/layout.h

// The subset of the levels that the last four bits of a path, the newest lowest, leave open.
constexpr int32_t subset(int32_t path) { return ((path ^ path >> 2 ^ path >> 3) & 1) * 2 + (path >> 1 & 1); }

// A row's path, followed from its beginning.
struct Path {
  static constexpr int64_t kMemory = 3;  // columns that decide on the next one's subset
  int32_t bits = 0;

  // The number of a column's level, in ascending order, from its stored code.
  int32_t level(int32_t code) {
    bits = (bits << 1 | (code & 1)) & 15;
    return code >> 1 << 2 | subset(bits);
  }
};

}  // namespace
}  // namespace potq
