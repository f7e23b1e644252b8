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
inline void add_columns(const typename From::Type* w, const float* x, size_t stride, Vector (&sums)[Weights][Rows][kParts]) {
  for (int part = 0; part < kParts; part++) {
    Vector weight[Weights];
    for (int r = 0; r < Weights; r++) weight[r] = From::vector(w + size_t(r) * stride + part * kWidth);
    for (int i = 0; i < Rows; i++) {
      const Vector number = in_register(load(x + size_t(i) * stride + part * kWidth));
      for (int r = 0; r < Weights; r++) sums[r][i][part] += weight[r] * number;
    }
  }
}

// The columns behind the last 16 of some rows, with zeros behind them: in a sum, which never is -0, they change nothing.
template <class T>
void copy_rest(const T* from, int columns, int rows, T* to) {
  const int rest = columns % kLanes;
  for (int i = 0; i < rows; i++) {
    std::fill_n(to + i * kLanes, kLanes, T());
    std::copy_n(from + size_t(i) * size_t(columns) + (columns - rest), rest, to + i * kLanes);
  }
}

template <class From, int Weights, int Rows>
void product_tile(const typename From::Type* w, const float* x, int columns, float* y, size_t stride) {
  Vector sums[Weights][Rows][kParts] = {};
  typename From::Type w_rest[Weights * kLanes];
  float x_rest[Rows * kLanes];
  const typename From::Type* w_now = w;
  const float* x_now = x;
  size_t step = size_t(columns);
  for (int left = columns; left > 0; left -= kLanes, w_now += kLanes, x_now += kLanes) {
    if (left < kLanes) {
      copy_rest(w, columns, Weights, w_rest), copy_rest(x, columns, Rows, x_rest);
      w_now = w_rest, x_now = x_rest, step = kLanes;
    }
    add_columns<From, Weights, Rows>(w_now, x_now, step, sums);
  }
  Sums all[Weights * Rows];
  std::memcpy(all, sums, sizeof all);
#pragma GCC unroll 1
  for (int i = 0; i < Rows; i++) {
    for (int r = 0; r < Weights; r++) y[size_t(i) * stride + size_t(r)] = total(all[r * Rows + i]);
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
  for (; r < p.rows; r++) {  // few
    for (int i = 0; i < Rows; i++)
      product_tile<From, 1, 1>(w + size_t(r) * columns, x + size_t(i) * columns, p.columns, y + size_t(i) * p.stride + r, 0);
  }
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
