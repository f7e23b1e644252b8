// The level nearest to a number, where the grid has many.
#pragma once

#include <algorithm>

#include "../potq.h"

namespace potq {
namespace {  // a copy for every file: see kernels/layout.h

constexpr int32_t kCounted = 16;  // up to so many levels, comparing with every boundary beats searching

inline float searched_level(const potq_columns& c, float x) {
  return c.levels[std::upper_bound(c.boundaries, c.boundaries + c.n_levels - 1, x) - c.boundaries];
}

}  // namespace
}  // namespace potq
