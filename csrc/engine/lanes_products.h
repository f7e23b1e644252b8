// Products with float weights: tiles of rows of weights and rows of activations whose sums stay in registers, so that a weight
// is loaded and converted once for several rows of activations. Every sum is taken in 16 lanes over the columns and then in one
// order, whatever tile it is in.
#pragma once

#include <algorithm>
#include <cstring>

#include "lanes.h"
#include "lanes_tiles.h"
#include "lanes_vectors.h"

namespace potq {
namespace engine {
namespace {

constexpr int kLanes = 16, kParts = kLanes / kWidth;  // kParts: vectors of a sum
using Sums = float[kLanes];

inline float total(const Sums& sums) {
  typedef float Four __attribute__((vector_size(16)));
  Four quarters[4];
  std::memcpy(quarters, sums, sizeof quarters);
  const Four sum = (quarters[0] + quarters[2]) + (quarters[1] + quarters[3]);
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

struct FromFloat {
  using Type = float;
  static inline Vector vector(const float* from) { return load(from); }
};
struct FromHalf {
  using Type = uint16_t;
  static inline Vector vector(const uint16_t* from) { return load_half(from); }
};
struct FromBfloat16 {
  using Type = uint16_t;
  static inline Vector vector(const uint16_t* from) { return load_bfloat16(from); }
};

template <class From, int Weights, int Rows>
inline void add_columns(const typename From::Type* w, const float* x, size_t w_stride, size_t x_stride,
                        Vector (&sums)[Weights][Rows][kParts]) {
  for (int part = 0; part < kParts; part++) {
    Vector weight[Weights];
    for (int r = 0; r < Weights; r++) weight[r] = From::vector(w + size_t(r) * w_stride + part * kWidth);
    for (int i = 0; i < Rows; i++) {
      const Vector number = in_register(load(x + size_t(i) * x_stride + part * kWidth));
      for (int r = 0; r < Weights; r++) sums[r][i][part] += weight[r] * number;
    }
  }
}

// The columns behind the last 16, with zeros behind them: in a sum, which never is -0, they change nothing.
template <class From, int Weights, int Rows>
inline void add_rest(const typename From::Type* w, const float* x, int columns, int from,
                     Vector (&sums)[Weights][Rows][kParts]) {
  typename From::Type weights[Weights][kLanes] = {};
  float numbers[Rows][kLanes] = {};
  for (int r = 0; r < Weights; r++) std::copy(w + r * size_t(columns) + from, w + (r + 1) * size_t(columns), weights[r]);
  for (int i = 0; i < Rows; i++) std::copy(x + i * size_t(columns) + from, x + (i + 1) * size_t(columns), numbers[i]);
  add_columns<From, Weights, Rows>(weights[0], numbers[0], kLanes, kLanes, sums);
}

template <class From, int Weights, int Rows>
inline void product_tile(const typename From::Type* w, const float* x, int columns, float* y, size_t stride) {
  Vector sums[Weights][Rows][kParts] = {};
  int k = 0;
  for (; k + kLanes <= columns; k += kLanes)
    add_columns<From, Weights, Rows>(w + k, x + k, size_t(columns), size_t(columns), sums);
  if (k < columns) add_rest<From, Weights, Rows>(w, x, columns, k, sums);
  for (int r = 0; r < Weights; r++) {
    for (int i = 0; i < Rows; i++) {
      Sums all;
      std::memcpy(all, sums[r][i], sizeof all);
      y[size_t(i) * stride + size_t(r)] = total(all);
    }
  }
}

// Rows of activations stay in the cache while weights pass by. For one, weights are read as they lie: memory is what limits it.
template <class From, int Rows>
inline void product_rows(const Product& p, int first) {
  constexpr int kWeights = Rows == 1 ? 1 : kWeightRows;
  const typename From::Type* w = static_cast<const typename From::Type*>(p.w);
  const float* x = p.x + size_t(first) * size_t(p.columns);
  float* y = p.y + size_t(first) * p.stride;
  const size_t columns = size_t(p.columns);
  int r = 0;
  for (; r + kWeights <= p.rows; r += kWeights)
    product_tile<From, kWeights, Rows>(w + size_t(r) * columns, x, p.columns, y + r, p.stride);
  for (; r < p.rows; r++) product_tile<From, 1, Rows>(w + size_t(r) * columns, x, p.columns, y + r, p.stride);
}

template <class From>
void product(const Product& p) {
  in_tiles<kRows>(p.m, [&](auto rows, int first) { product_rows<From, decltype(rows)::value>(p, first); });
}

inline float dot(const float* a, const float* b, int count) {
  float result;
  product_tile<FromFloat, 1, 1>(a, b, count, &result, 0);
  return result;
}

}  // namespace
}  // namespace engine
}  // namespace potq
