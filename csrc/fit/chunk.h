// The levels nearest to a chunk of numbers, in loops that compilers turn into vectors.
#pragma once

#include <algorithm>
#include <cmath>

#include "../potq.h"
#include "clones.h"
#include "levels.h"

namespace potq {
namespace {  // a copy for every file: see kernels/layout.h

constexpr int32_t kChunk = 64;  // numbers at a time

// Integers times a power of two, as 8-bit ones are, need no search: `step` between levels, else 0.
float integer_step(const potq_columns& c) {
  const float step = c.levels[1] - c.levels[0];
  int exponent;
  if (c.n_levels <= kCounted || std::frexp(step, &exponent) != 0.5f) return 0.0f;
  for (int32_t i = 0; i < c.n_levels; ++i) {
    const float integer = c.levels[i] / step;
    if (integer != std::nearbyint(integer) || std::fabs(integer) > 1e6f) return 0.0f;
    if (i > 0 && (c.levels[i] - c.levels[i - 1] != step || c.boundaries[i - 1] != c.levels[i] - step / 2)) return 0.0f;
  }
  return step;
}

// x / step is exact. Adding 1.5 2^23 rounds it to an integer, a tie to the even one, which is then moved up.
POTQ_CLONES void nearest_integers(const potq_columns& c, float step, int32_t count, const float* x, float* level) {
  const float low = c.levels[0] / step, high = c.levels[c.n_levels - 1] / step, inverse = 1.0f / step, magic = 12582912.0f;
  for (int32_t i = 0; i < count; ++i) {
    const float t = x[i] * inverse, inside = t < low ? low : t > high ? high : t;
    const float even = (inside + magic) - magic;
    level[i] = (even + (inside - even >= 0.5f ? 1.0f : 0.0f)) * step;
  }
}

// Levels are added up step by step: a comparison and a masked move a number, where an index would need a gather.
POTQ_CLONES void counted_levels(const potq_columns& c, int32_t count, const float* x, float* level) {
  for (int32_t i = 0; i < count; ++i) level[i] = c.levels[0];
  for (int32_t k = 0; k + 1 < c.n_levels; ++k) {
    const float boundary = c.boundaries[k], above = c.levels[k + 1];
    for (int32_t i = 0; i < count; ++i) level[i] = x[i] >= boundary ? above : level[i];
  }
}

// All numbers of the chunk are searched at once, half the levels that are left at a time.
POTQ_CLONES void searched_levels(const potq_columns& c, int32_t count, const float* x, float* level) {
  int32_t at[kChunk] = {}, width = 1;
  while (2 * width < c.n_levels) width *= 2;
  for (; width > 0; width /= 2) {
    for (int32_t i = 0; i < count; ++i) {
      const int32_t next = std::min(at[i] + width, c.n_levels - 1);
      at[i] = x[i] >= c.boundaries[next - 1] ? next : at[i];
    }
  }
  for (int32_t i = 0; i < count; ++i) level[i] = c.levels[at[i]];
}

// The levels nearest to at most kChunk numbers; `step` is the grid's integer_step.
void nearest_levels(const potq_columns& c, float step, int32_t count, const float* x, float* level) {
  if (step > 0.0f) return nearest_integers(c, step, count, x, level);
  if (c.n_levels > kCounted) return searched_levels(c, count, x, level);
  counted_levels(c, count, x, level);
}

}  // namespace
}  // namespace potq
