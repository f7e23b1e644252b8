// Vectors as wide as the registers of the instruction set that a file is compiled for. Operators work on every lane; no product
// is contracted into an fma.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../numbers.h"

namespace potq {
namespace engine {
namespace {

// kSums: vectors of sums that stay in registers beside what they are computed from. kWeightRows x kRows: rows of weights and of
// activations whose sums, of 16 lanes, do so.
#if defined(__AVX512F__)
constexpr int kWidth = 16, kSums = 24, kWeightRows = 4, kRows = 6;
#elif defined(__AVX2__)
constexpr int kWidth = 8, kSums = 12, kWeightRows = 2, kRows = 3;
#elif defined(__aarch64__)
constexpr int kWidth = 4, kSums = 16, kWeightRows = 2, kRows = 3;
#else
constexpr int kWidth = 4, kSums = 12, kWeightRows = 1, kRows = 3;
#endif

typedef float Vector __attribute__((vector_size(kWidth * 4)));
typedef uint32_t Bits __attribute__((vector_size(kWidth * 4)));
typedef int32_t Ints __attribute__((vector_size(kWidth * 4)));
typedef uint16_t Halves __attribute__((vector_size(kWidth * 2)));

inline Vector wide(float value) { return value - Vector{}; }  // of a sum with 0, -0 would be 0, and the compiler would add

inline Vector load(const float* from) {
  Vector result;
  std::memcpy(&result, from, sizeof result);
  return result;
}

// Keeps the compiler from loading a number again for every use.
inline Vector in_register(Vector value) {
#if defined(__AVX2__)
  asm("" : "+v"(value));
#endif
  return value;
}

inline void store(Vector value, float* to) { std::memcpy(to, &value, sizeof value); }

// From float16, exact: see from_float16.
inline Vector load_half(const uint16_t* from) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__F16C__)
  return reinterpret_cast<Vector>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__aarch64__)
  return reinterpret_cast<Vector>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
#else
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  const Bits bits = __builtin_convertvector(halves, Bits), magnitude = bits & 0x7fff;
  const Ints number = reinterpret_cast<Ints>(magnitude);  // SSE compares signed numbers
  const Bits small = reinterpret_cast<Bits>(__builtin_convertvector(number, Vector) * 0x1p-24f);
  const Bits large = (magnitude << 13) + 0x38000000 + (reinterpret_cast<Bits>(number > 0x7bff) & 0x38000000);
  const Bits is_small = reinterpret_cast<Bits>(number < 0x400);
  return reinterpret_cast<Vector>((is_small & small) | (~is_small & large) | (bits & 0x8000) << 16);
#endif
}

inline Vector load_bfloat16(const uint16_t* from) {
#if defined(__AVX512F__)
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return reinterpret_cast<Vector>(_mm512_slli_epi32(bits, 16));
#elif defined(__AVX2__)
  const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return reinterpret_cast<Vector>(_mm256_slli_epi32(bits, 16));
#else
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return reinterpret_cast<Vector>(__builtin_convertvector(halves, Bits) << 16);
#endif
}

// e^x within 2 units in the last place: 2^n e^r with |r| <= ln 2 / 2 (Cephes). NaN stays NaN.
inline Vector exponential(Vector x) {
  x = x > wide(88.3f) ? wide(88.3f) : x;
  x = x < wide(-87.3f) ? wide(-87.3f) : x;
  const Vector n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector p = wide(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
  // 1.5 * 2^23 + n has n in its lowest bits
  const Bits power = (reinterpret_cast<Bits>(n + 12582912.0f) + 127) << 23;
  return p * reinterpret_cast<Vector>(power);
}

}  // namespace
}  // namespace engine
}  // namespace potq
