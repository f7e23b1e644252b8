/* A weight that is learned: rounding, and gradients straight through it, in one pass over memory each.
 *
 * Forward, with x = w / s - z for a weight w whose group has scale s and shift z, and q(x) the level nearest to x:
 *     v = s (q(x) + z).
 * Backward, with G the gradient of v, "inside" meaning that x is between the grid's edges (2601.02298 eq. 6, LSQ 1902.08153
 * eq. 3; a weight beyond the edges is clipped, follows its scale alone, and has no gradient itself):
 *     dw = G inside,     ds = sum over the group of G (q(x) + z - inside (x + z)).
 * A zero scale gives zero values, and has no gradient itself.
 *
 * Nothing is kept between the two passes: x is computed again, which costs less than reading what could be kept. As separate
 * tensor operations the same takes twenty passes, and memory for six copies of the weight. Rows are independent, and a group is
 * summed in one order, so that any number of threads gives the same bits.
 */
#include <algorithm>
#include <cmath>

#include "../numbers.h"
#include "../potq.h"
#include "chunk.h"

namespace potq {
namespace {

struct Chunk {
  float x[kChunk], level[kChunk], gradient[kChunk], slope[kChunk];
};

POTQ_CLONES void round_chunk(const potq_columns& c, const float* latent, int32_t count, float scale, float shift, float step,
                             Chunk& out) {
  const float divisor = scale != 0.0f ? scale : INFINITY;
  for (int32_t i = 0; i < count; ++i) out.x[i] = latent[i] / divisor - shift;
  nearest_levels(c, step, count, out.x, out.level);
}

/* Gradients of a rounded chunk's weights; returns the scale's, summed in eight strands, which vectors can hold. */
POTQ_CLONES float chunk_gradients(float low, float high, float shift, int32_t count, float* to_latent, Chunk& chunk) {
  for (int32_t i = 0; i < count; ++i) {
    const float g = chunk.gradient[i], x = chunk.x[i], value = chunk.level[i] + shift;
    const bool inside = x >= low && x <= high;
    chunk.slope[i] = g * (inside ? value - (x + shift) : value);
    to_latent[i] = inside ? g : 0.0f;
  }
  float sums[8] = {};
  std::fill(chunk.slope + count, chunk.slope + kChunk, 0.0f);
  for (int32_t i = 0; i < kChunk; i += 8) {
    for (int32_t k = 0; k < 8; ++k) sums[k] += chunk.slope[i + k];
  }
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

/* Calls `visit(group, first, count)` for every run of at most kChunk columns of one group. */
template <class Visit>
void each_chunk(const potq_columns& c, Visit visit) {
  for (int32_t first = 0; first < c.columns;) {
    const int32_t group = c.group[first], limit = std::min(c.columns, first + kChunk);
    int32_t end = first + 1;
    while (end < limit && c.group[end] == group) ++end;
    visit(group, first, end - first);
    first = end;
  }
}

inline float load(const float* from, int64_t at) { return from[at]; }
inline float load(const uint16_t* from, int64_t at) { return from_bfloat16(from[at]); }
inline void store(float* to, int64_t at, float value) { to[at] = value; }
inline void store(uint16_t* to, int64_t at, float value) { to[at] = to_bfloat16(value); }

template <class T>
void forward(const potq_columns& c, const float* latent, T* values, int32_t threads) {
  const float step = integer_step(c);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < c.rows; ++row) {
    Chunk chunk;
    each_chunk(c, [&](int32_t group, int32_t first, int32_t count) {
      const float scale = c.scale[row * c.groups + group], shift = c.shift ? c.shift[row * c.groups + group] : 0.0f;
      const int64_t at = row * c.columns + first;
      round_chunk(c, latent + at, count, scale, shift, step, chunk);
      for (int32_t i = 0; i < count; ++i) store(values, at + i, scale * (chunk.level[i] + shift));
    });
  }
}

template <class T>
void backward(const potq_columns& c, const float* latent, const float* edges, const T* gradient, float* to_latent,
              float* to_scale, int32_t threads) {
  const float low = edges[0], high = edges[1], step = integer_step(c);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < c.rows; ++row) {
    Chunk chunk;
    std::fill_n(to_scale + row * c.groups, c.groups, 0.0f);
    each_chunk(c, [&](int32_t group, int32_t first, int32_t count) {
      const int64_t own = row * c.groups + group, at = row * c.columns + first;
      const float scale = c.scale[own], shift = c.shift ? c.shift[own] : 0.0f;
      round_chunk(c, latent + at, count, scale, shift, step, chunk);
      for (int32_t i = 0; i < count; ++i) chunk.gradient[i] = load(gradient, at + i);
      if (scale == 0.0f) std::fill_n(chunk.level, count, -shift);
      to_scale[own] += chunk_gradients(low, high, shift, count, to_latent + at, chunk);
    });
  }
}

}  // namespace
}  // namespace potq

extern "C" {

void potq_round(const potq_columns* weight, const float* latent, void* values, int32_t bfloat16, int32_t threads) {
  if (bfloat16) return potq::forward(*weight, latent, static_cast<uint16_t*>(values), threads);
  potq::forward(*weight, latent, static_cast<float*>(values), threads);
}

void potq_round_backward(const potq_columns* weight, const float* latent, const float* edges, const void* gradient,
                         int32_t bfloat16, float* latent_gradient, float* scale_gradient, int32_t threads) {
  if (bfloat16) {
    const auto* narrow = static_cast<const uint16_t*>(gradient);
    return potq::backward(*weight, latent, edges, narrow, latent_gradient, scale_gradient, threads);
  }
  potq::backward(*weight, latent, edges, static_cast<const float*>(gradient), latent_gradient, scale_gradient, threads);
}

}  // extern "C"
