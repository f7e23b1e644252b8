// Attention of several query heads on one key-value head, as a product of matrices whose accumulators stay in registers: a
// vector of keys or values is loaded and converted once for all heads of a tile. A lane is a key in `score` and a number of the
// head in `mix`, so no sum crosses lanes: each is taken in order, and neither tiles nor vectors change its bits.
#pragma once

#include <algorithm>
#include <cstring>

#include "config.h"
#include "lanes.h"
#include "lanes_tiles.h"
#include "lanes_vectors.h"

namespace potq {
namespace engine {
namespace {

constexpr int kTile = std::min(8, kSums / 2);  // heads, with two vectors at a time; more gain nothing
// With few heads four vectors, or sums would wait for themselves; the two more take registers too.
constexpr int vectors_of(int heads) { return 4 * heads + 2 <= kSums ? 4 : 2; }

// ---- scores

// The heads' numbers, side by side: number of the head, head.
template <int Heads>
inline void interleave(const HeadRows<const float>& q, int first, int size, float* panel) {
  for (int h = 0; h < Heads; h++) {
    const float* from = q.head(first + h, size);
    for (int d = 0; d < size; d++) panel[d * Heads + h] = from[d];
  }
}

template <int Heads, int Vectors>
inline void score_vectors(const float* panel, const uint16_t* keys, int size, float scale, float* scores, size_t stride) {
  Vector sums[Vectors][Heads] = {};
  for (int d = 0; d < size; d++, keys += kKeyBlock, panel += Heads) {
    Vector key[Vectors];
    for (int v = 0; v < Vectors; v++) {
      const int from = v * kWidth;
      key[v] = load_half(keys + from / kKeyBlock * kKeyBlock * size + from % kKeyBlock);
    }
    for (int h = 0; h < Heads; h++) {
      const Vector query = wide(panel[h]);
      for (int v = 0; v < Vectors; v++) sums[v][h] += key[v] * query;
    }
  }
  for (int h = 0; h < Heads; h++) {
    for (int v = 0; v < Vectors; v++) store(sums[v][h] * scale, scores + size_t(h) * stride + v * kWidth);
  }
}

template <int Heads, int Vectors>
inline void score_blocks(const float* panel, const uint16_t* keys, int size, int blocks, float scale, float* scores,
                         size_t stride) {
  constexpr int step = Vectors * kWidth, whole = step < kKeyBlock ? kKeyBlock : step;  // keys
  for (; blocks * kKeyBlock >= whole; blocks -= whole / kKeyBlock, keys += whole * size, scores += whole) {
    for (int k = 0; k < whole; k += step) score_vectors<Heads, Vectors>(panel, keys + k, size, scale, scores + k, stride);
  }
  if constexpr (whole > kKeyBlock) score_blocks<Heads, Vectors / 2>(panel, keys, size, blocks, scale, scores, stride);
}

// ---- mixing

struct Mixing {  // the arguments of Lanes::mix
  const float* weights;
  size_t stride;
  const uint16_t* values;
  int size, count;
  const HeadRows<float>& out;
};

inline void copy_numbers(const float* from, int numbers, float* to) {
  int i = 0;
  for (; i + kWidth <= numbers; i += kWidth) store(load(from + i), to + i);
  for (; i < numbers; i++) to[i] = from[i];
}

// Copies `numbers` numbers, from number d, of heads from `first` on, to or from parts that lie `step` apart.
template <bool Back>
void move_parts(const Mixing& m, int first, int heads, int d, int numbers, float* parts, int step) {
  float* out = m.out.head(first, m.size) + d;
  for (int h = 0, member = first % m.out.group; h < heads; h++, parts += step) {
    Back ? copy_numbers(parts, numbers, out) : copy_numbers(out, numbers, parts);
    const bool last = ++member == m.out.group;
    out += last ? m.out.stride - size_t(m.out.group - 1) * size_t(m.size) : size_t(m.size);
    if (last) member = 0;
  }
}

// Adds to `numbers` numbers, from number d, of heads from `first` on. Vectors may reach beyond them.
template <int Heads, int Vectors>
void mix_vectors(const Mixing& m, int first, int d, int numbers) {
  Vector sums[Heads][Vectors];
  float parts[Heads * Vectors * kWidth] = {};
  move_parts<false>(m, first, Heads, d, numbers, parts, Vectors * kWidth);
  std::memcpy(sums, parts, sizeof sums);
  const float* weights = m.weights + size_t(first) * m.stride;
  const uint16_t* values = m.values + d;
  for (int p = 0; p < m.count; p++, values += m.size) {
    Vector value[Vectors];
    for (int v = 0; v < Vectors; v++) value[v] = load_half(values + v * kWidth);
    for (int h = 0; h < Heads; h++) {
      const Vector weight = wide(weights[size_t(h) * m.stride + size_t(p)]);
      for (int v = 0; v < Vectors; v++) sums[h][v] += value[v] * weight;
    }
  }
  std::memcpy(parts, sums, sizeof sums);
  move_parts<true>(m, first, Heads, d, numbers, parts, Vectors * kWidth);
}

// All numbers from d on.
template <int Heads, int Vectors>
inline void mix_numbers(const Mixing& m, int first, int d) {
  constexpr int step = Vectors * kWidth;
  if constexpr (Vectors > 1) {
    for (; d + step <= m.size; d += step) mix_vectors<Heads, Vectors>(m, first, d, step);
    mix_numbers<Heads, Vectors / 2>(m, first, d);
  } else {
    for (; d < m.size; d += step) mix_vectors<Heads, 1>(m, first, d, std::min(step, m.size - d));
  }
}

// ---- tiles

void score(const HeadRows<const float>& q, const uint16_t* keys, int size, int blocks, float scale, float* scores,
           size_t stride) {
  in_tiles<kTile>(q.rows * q.group, [&](auto heads, int first) {
    constexpr int kHeads = decltype(heads)::value;
    float panel[kTile * kMaxHead];
    interleave<kHeads>(q, first, size, panel);
    score_blocks<kHeads, vectors_of(kHeads)>(panel, keys, size, blocks, scale, scores + size_t(first) * stride, stride);
  });
}

void mix(const float* weights, size_t stride, const uint16_t* values, int size, int count, const HeadRows<float>& out) {
  const Mixing mixing = {weights, stride, values, size, count, out};
  in_tiles<kTile>(out.rows * out.group, [&](auto heads, int first) {
    constexpr int kHeads = decltype(heads)::value;
    mix_numbers<kHeads, vectors_of(kHeads)>(mixing, first, 0);
  });
}

}  // namespace
}  // namespace engine
}  // namespace potq
