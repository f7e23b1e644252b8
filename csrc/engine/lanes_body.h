// The functions of lanes.h. Included by the files that compile it for an instruction set, which define LANES_NAME.
//
// Loops over 16 lanes are written out for the compiler to vectorize; attention and the activations are written in vectors
// (lanes_vectors.h). float16 is converted with integers and one multiplication (exact), unless the instruction set has an
// instruction for it.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "lanes.h"
#include "lanes_attention.h"
#include "lanes_products.h"
#include "lanes_vectors.h"

namespace potq {
namespace engine {
namespace {

// Round to nearest, ties to even; overflow is infinity.
inline uint16_t to_float16(float value) {
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves units of 2^-24 in the mantissa
    const float units = float_of(magnitude) + 0.5f;
    return uint16_t(sign | (bits_of(units) - 0x3f000000));
  }
  const uint32_t rounded = magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1);
  return uint16_t(sign | rounded >> 13);
}

void to_half(const float* from, uint16_t* to, int count) {
  int i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
  }
#endif
  for (; i < count; i++) to[i] = to_float16(from[i]);
}

void rms_norm(const float* x, const float* weight, float epsilon, float* y, int count) {
  const float factor = 1.0f / std::sqrt(dot(x, x, count) / float(count) + epsilon);
  for (int i = 0; i < count; i++) y[i] = weight[i] * (x[i] * factor);
}

void layer_norm(const float* x, const float* weight, const float* bias, float epsilon, float* y, int count) {
  Sums sums = {}, squares = {};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int k = 0; k < kLanes; k++) sums[k] += x[i + k];
  }
  for (int k = 0; i < count; i++, k++) sums[k] += x[i];
  const float mean = total(sums) / float(count);
  for (i = 0; i + kLanes <= count; i += kLanes) {
    for (int k = 0; k < kLanes; k++) squares[k] += (x[i + k] - mean) * (x[i + k] - mean);
  }
  for (int k = 0; i < count; i++, k++) squares[k] += (x[i] - mean) * (x[i] - mean);
  const float factor = 1.0f / std::sqrt(total(squares) / float(count) + epsilon);
  for (i = 0; i < count; i++) y[i] = (x[i] - mean) * factor * weight[i] + bias[i];
}

void add(const float* x, float* y, int count) {
  for (int i = 0; i < count; i++) y[i] += x[i];
}

void multiply(const float* x, float* y, int count) {
  for (int i = 0; i < count; i++) y[i] *= x[i];
}

// y = f(x) for every number, a vector at a time; y may be x.
template <class Function>
inline void each(const float* x, float* y, int count, const Function& f) {
  int i = 0;
  for (; i + kWidth <= count; i += kWidth) store(f(load(x + i)), y + i);
  if (i == count) return;
  float rest[kWidth] = {};
  std::copy(x + i, x + count, rest);
  store(f(load(rest)), rest);
  std::copy(rest, rest + (count - i), y + i);
}

float largest(const float* x, int count) {
  Vector most = wide(x[0]);
  int i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    const Vector next = load(x + i);
    most = next > most ? next : most;
  }
  float result = x[0];
  for (int k = 0; k < kWidth; k++) result = most[k] > result ? most[k] : result;
  for (; i < count; i++) result = x[i] > result ? x[i] : result;
  return result;
}

void softmax(float* x, int count) {
  const Vector most = wide(largest(x, count));
  const auto power = [&](Vector v) { return exponential(v - most); };
  Vector sums[kLanes / kWidth] = {};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int v = 0; v < kLanes / kWidth; v++) {
      const Vector value = power(load(x + i + v * kWidth));
      sums[v] += value;
      store(value, x + i + v * kWidth);
    }
  }
  each(x + i, x + i, count - i, power);
  Sums all;
  std::memcpy(all, sums, sizeof all);
  for (int k = 0; i < count; i++, k++) all[k] += x[i];
  const float inverse = 1.0f / total(all);
  each(x, x, count, [&](Vector v) { return v * inverse; });
}

void silu(float* x, int count) {
  each(x, x, count, [](Vector v) { return v / (1.0f + exponential(-v)); });
}

// x (1 + tanh(u)) / 2 = x / (1 + e^(-2u))
void gelu_tanh(float* x, int count) {
  each(x, x, count, [](Vector v) {
    const Vector u = 0.7978845608f * (v + 0.044715f * (v * v * v));
    return v / (1.0f + exponential(-2.0f * u));
  });
}

}  // namespace

const Lanes LANES_NAME = {kTile,
                          product<FromFloat>,
                          product<FromHalf>,
                          product<FromBfloat16>,
                          score,
                          mix,
                          to_half,
                          rms_norm,
                          layer_norm,
                          add,
                          softmax,
                          silu,
                          gelu_tanh,
                          multiply};

}  // namespace engine
}  // namespace potq
