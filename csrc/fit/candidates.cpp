// The best of some scales: for every group the first one of least squared error.
//
// A group's weights are rounded under each of its scales in turn. The exact search (search.cpp) has hundreds of crossings a
// weight where there are hundreds of levels, and gains little there.
//
// The torch reference (scale_search.py) finds the same scales, to the bit. Both compute in float32 and add up in one order,
// that no vector width changes: of a chunk of kChunk errors the second half is added to the first, until one number is left; a
// group's chunks are added one after another in double.
#include <cmath>

#include "../potq.h"
#include "chunk.h"

namespace potq {
namespace {

struct Search {
  const potq_columns& grid;
  const float step, reference;

  Search(const potq_columns& grid, float reference) : grid(grid), step(integer_step(grid)), reference(reference) {}
};

POTQ_CLONES void divide(const float* weights, int32_t count, float scale, float reference, float* x) {
  for (int32_t i = 0; i < count; ++i) x[i] = weights[i] / scale * reference;
}

// The sum of `count` numbers, which are lost. A template, because compilers unroll only loops whose length they know.
template <int32_t count>
inline float sum_by_halves(float* x) {
  if constexpr (count == 1) {
    return x[0];
  } else {
    for (int32_t i = 0; i < count / 2; ++i) x[i] += x[i + count / 2];
    return sum_by_halves<count / 2>(x);
  }
}

// The sum of h (level - x)^2 in units of the scale, `h` null being all 1. `x`, of kChunk numbers, is lost.
POTQ_CLONES float squares(const float* level, const float* h, int32_t count, float unit, float* x) {
  for (int32_t i = 0; i < count; ++i) {
    const float error = (level[i] - x[i]) * unit;
    x[i] = error * error;
  }
  for (int32_t i = 0; h && i < count; ++i) x[i] *= h[i];
  for (int32_t i = count; i < kChunk; ++i) x[i] = 0.0f;
  return sum_by_halves<kChunk>(x);
}

// The squared error of a group under a scale. A zero scale loses all of it.
double squared_error(const Search& search, const float* weights, const float* importance, int64_t size, float scale) {
  alignas(64) float x[kChunk], level[kChunk];
  double sum = 0;
  for (int64_t first = 0; first < size; first += kChunk) {
    const int32_t count = static_cast<int32_t>(std::min<int64_t>(size - first, kChunk));
    const float *w = weights + first, *h = importance ? importance + first : nullptr;
    if (scale != 0.0f) {
      divide(w, count, scale, search.reference, x);
      nearest_levels(search.grid, search.step, count, x, level);
      sum += squares(level, h, count, 1.0f / search.reference, x);
    } else {
      std::fill_n(x, count, 0.0f);
      sum += squares(w, h, count, 1.0f, x);
    }
  }
  return scale != 0.0f ? sum * (static_cast<double>(scale) * scale) : sum;
}

int64_t best_of(const Search& search, const float* weights, const float* importance, int64_t size, const float* scales,
                int32_t candidates) {
  int64_t best = 0;
  double least = squared_error(search, weights, importance, size, scales[0]);
  for (int32_t c = 1; c < candidates; ++c) {
    const double error = squared_error(search, weights, importance, size, scales[c]);
    if (error < least) least = error, best = c;
  }
  return best;
}

}  // namespace
}  // namespace potq

void potq_best_candidates(const float* levels, const float* boundaries, int32_t n_levels, float reference, const float* weights,
                          const float* importance, int64_t groups, int64_t size, const float* scales, int32_t candidates,
                          int64_t* best, int32_t threads) {
  const potq_columns grid = {levels, boundaries, nullptr, nullptr, nullptr, 0, 0, 0, n_levels};
  const potq::Search search(grid, reference);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t g = 0; g < groups; ++g) {
    const float* own = importance ? importance + g * size : nullptr;
    best[g] = potq::best_of(search, weights + g * size, own, size, scales + g * candidates, candidates);
  }
}
