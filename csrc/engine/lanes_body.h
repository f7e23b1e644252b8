// The functions of lanes.h. Included by the files that compile it for an instruction set, which define LANES_NAME.
//
// Loops over 16 lanes are written out for the compiler to vectorize. float16 is converted with integers and one
// multiplication (exact), unless the instruction set has an instruction for it.
#include <cmath>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "../numbers.h"
#include "lanes.h"

namespace potq {
namespace engine {
namespace {

constexpr int kLanes = 16;
using Sums = float[kLanes];

inline float total(const Sums& sums) {
  float half[8], quarter[4];
  for (int i = 0; i < 8; i++) half[i] = sums[i] + sums[i + 8];
  for (int i = 0; i < 4; i++) quarter[i] = half[i] + half[i + 4];
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

inline void load(const float* from, float* to) { std::memcpy(to, from, kLanes * 4); }

struct FromFloat {
  using Type = float;
  static inline void load(const float* from, float* to) { std::memcpy(to, from, kLanes * 4); }
  static inline float one(float value) { return value; }
};
struct FromHalf {
  using Type = uint16_t;
  static inline void load(const uint16_t* from, float* to) {
#if defined(__F16C__)
    _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
    _mm256_storeu_ps(to + 8, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8))));
#elif defined(__aarch64__)
    const __fp16* halves = reinterpret_cast<const __fp16*>(from);
    for (int i = 0; i < kLanes; i++) to[i] = float(halves[i]);
#else
    for (int i = 0; i < kLanes; i++) to[i] = from_float16(from[i]);
#endif
  }
  static inline float one(uint16_t value) { return from_float16(value); }
};
struct FromBfloat16 {
  using Type = uint16_t;
  static inline void load(const uint16_t* from, float* to) {
    for (int i = 0; i < kLanes; i++) to[i] = from_bfloat16(from[i]);
  }
  static inline float one(uint16_t value) { return from_bfloat16(value); }
};

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

template <class From>
inline float dot_of(const typename From::Type* a, const float* b, int count) {
  Sums sums = {};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    float left[kLanes];
    From::load(a + i, left);
    for (int k = 0; k < kLanes; k++) sums[k] += left[k] * b[i + k];
  }
  for (int k = 0; i < count; i++, k++) sums[k] += From::one(a[i]) * b[i];
  return total(sums);
}

float dot(const float* a, const float* b, int count) { return dot_of<FromFloat>(a, b, count); }
float dot_half(const uint16_t* a, const float* b, int count) { return dot_of<FromHalf>(a, b, count); }
float dot_bfloat16(const uint16_t* a, const float* b, int count) { return dot_of<FromBfloat16>(a, b, count); }

// 16 numbers as the compiler's own vector: whatever registers there are.
typedef float Wide __attribute__((vector_size(64)));

inline Wide wide(float value) { return Wide{} + value; }

inline Wide load_half(const uint16_t* from) {
#if defined(__AVX512F__)
  return reinterpret_cast<Wide>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#else
  float values[kLanes];
  FromHalf::load(from, values);
  Wide result;
  std::memcpy(&result, values, sizeof result);
  return result;
#endif
}

// A key is a lane, so no sum crosses lanes; each is taken over the head's numbers in order. Two blocks of keys at a time: one
// would wait for its own sums.
template <int Heads, int Blocks>
inline void score_blocks(const float* q, const uint16_t* keys, int size, float scale, float* scores, size_t stride) {
  Wide sums[Blocks][Heads] = {};
  for (int d = 0; d < size; d++, keys += kLanes) {
    Wide key[Blocks];
    for (int b = 0; b < Blocks; b++) key[b] = load_half(keys + b * size * kLanes);
    for (int g = 0; g < Heads; g++) {
      const Wide query = wide(q[g * size + d]);
      for (int b = 0; b < Blocks; b++) sums[b][g] += key[b] * query;
    }
  }
  for (int b = 0; b < Blocks; b++) {
    for (int g = 0; g < Heads; g++) {
      const Wide scaled = sums[b][g] * wide(scale);
      std::memcpy(scores + size_t(g) * stride + b * kLanes, &scaled, sizeof scaled);
    }
  }
}

template <int Heads>
inline void score_heads(const float* q, const uint16_t* keys, int size, int blocks, float scale, float* scores, size_t stride) {
  const int step = size * kLanes;
  for (; blocks >= 2; blocks -= 2, keys += 2 * step, scores += 2 * kLanes)
    score_blocks<Heads, 2>(q, keys, size, scale, scores, stride);
  if (blocks) score_blocks<Heads, 1>(q, keys, size, scale, scores, stride);
}

void score(const float* q, int group, const uint16_t* keys, int size, int blocks, float scale, float* scores, size_t stride) {
  for (; group >= 4; group -= 4, q += 4 * size, scores += 4 * stride)
    score_heads<4>(q, keys, size, blocks, scale, scores, stride);
  if (group == 3) score_heads<3>(q, keys, size, blocks, scale, scores, stride);
  if (group == 2) score_heads<2>(q, keys, size, blocks, scale, scores, stride);
  if (group == 1) score_heads<1>(q, keys, size, blocks, scale, scores, stride);
}

// 16 numbers of the head at a time, for all positions in order.
template <int Heads>
inline void mix_heads(const float* weights, size_t stride, const uint16_t* values, int size, int count, float* out) {
  int d = 0;
  for (; d + 2 * kLanes <= size; d += 2 * kLanes) {
    Wide low[Heads] = {}, high[Heads] = {};
    const uint16_t* value = values + d;
    for (int p = 0; p < count; p++, value += size) {
      const Wide first = load_half(value), second = load_half(value + kLanes);
      for (int g = 0; g < Heads; g++) {
        const Wide weight = wide(weights[size_t(g) * stride + size_t(p)]);
        low[g] += first * weight;
        high[g] += second * weight;
      }
    }
    for (int g = 0; g < Heads; g++) {
      std::memcpy(out + g * size + d, &low[g], sizeof low[g]);
      std::memcpy(out + g * size + d + kLanes, &high[g], sizeof high[g]);
    }
  }
  for (; d < size; d++) {
    for (int g = 0; g < Heads; g++) {
      float sum = 0;
      for (int p = 0; p < count; p++)
        sum += from_float16(values[size_t(p) * size_t(size) + size_t(d)]) * weights[size_t(g) * stride + size_t(p)];
      out[g * size + d] = sum;
    }
  }
}

void mix(const float* weights, size_t stride, int group, const uint16_t* values, int size, int count, float* out) {
  for (; group >= 4; group -= 4, weights += 4 * stride, out += 4 * size)
    mix_heads<4>(weights, stride, values, size, count, out);
  if (group == 3) mix_heads<3>(weights, stride, values, size, count, out);
  if (group == 2) mix_heads<2>(weights, stride, values, size, count, out);
  if (group == 1) mix_heads<1>(weights, stride, values, size, count, out);
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

void from_half(const uint16_t* from, float* to, int count) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) FromHalf::load(from + i, to + i);
  for (; i < count; i++) to[i] = from_float16(from[i]);
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

// e^x within 2 units in the last place: 2^n e^r with |r| <= ln 2 / 2 (Cephes). NaN stays NaN.
inline float exponential(float x) {
  x = x > 88.3f ? 88.3f : x;
  x = x < -87.3f ? -87.3f : x;
  const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
  // 1.5 * 2^23 + n has n in its lowest bits
  const uint32_t power = (bits_of(n + 12582912.0f) + 127) << 23;
  return p * float_of(power);
}

void softmax(float* x, int count) {
  float largest[kLanes], most = x[0];
  int i = 0;
  for (int k = 0; k < kLanes; k++) largest[k] = x[0];
  for (; i + kLanes <= count; i += kLanes) {
    for (int k = 0; k < kLanes; k++) largest[k] = x[i + k] > largest[k] ? x[i + k] : largest[k];
  }
  for (; i < count; i++) most = x[i] > most ? x[i] : most;
  for (int k = 0; k < kLanes; k++) most = largest[k] > most ? largest[k] : most;
  Sums sums = {};
  for (i = 0; i + kLanes <= count; i += kLanes) {
    for (int k = 0; k < kLanes; k++) {
      x[i + k] = exponential(x[i + k] - most);
      sums[k] += x[i + k];
    }
  }
  for (int k = 0; i < count; i++, k++) {
    x[i] = exponential(x[i] - most);
    sums[k] += x[i];
  }
  const float inverse = 1.0f / total(sums);
  for (i = 0; i < count; i++) x[i] *= inverse;
}

void silu(float* x, int count) {
  for (int i = 0; i < count; i++) x[i] = x[i] / (1.0f + exponential(-x[i]));
}

// x (1 + tanh(u)) / 2 = x / (1 + e^(-2u))
void gelu_tanh(float* x, int count) {
  for (int i = 0; i < count; i++) {
    const float u = 0.7978845608f * (x[i] + 0.044715f * (x[i] * x[i] * x[i]));
    x[i] = x[i] / (1.0f + exponential(-2.0f * u));
  }
}

}  // namespace

const Lanes LANES_NAME = {dot,      dot_half,   dot_bfloat16, score,   mix,  to_half,   from_half,
                          rms_norm, layer_norm, add,          softmax, silu, gelu_tanh, multiply};

}  // namespace engine
}  // namespace potq
