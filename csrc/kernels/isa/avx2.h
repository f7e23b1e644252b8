// Vectors of AVX2, FMA and F16C. The dot product is left to what derives from it.
#pragma once

#include <immintrin.h>

#include "../product.h"

namespace potq {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8, kPanelRows = 4, kFloatPanelRows = 2, kPairFrom = 99, kNarrowSteps = 0;
  // levels take a byte, and are decoded once for all rows: with half as many lanes as AVX-512 there is more to decode beside
  // fewer products
  static constexpr bool kDecodesFirst = true, kPairsRows = false, kOneRowApart = true;
  using Bytes = __m256i;
  using Table = __m256i;
  using Ints = __m256i;
  using Floats = __m256;

  static POTQ_INLINE void prefetch(const uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0); }
  static POTQ_INLINE void prefetch_write(const uint8_t* from) { __builtin_prefetch(from, 1); }
  static POTQ_INLINE Bytes load(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static POTQ_INLINE void save(uint8_t* to, Bytes v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v); }
  static POTQ_INLINE Bytes low(Bytes v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
  static POTQ_INLINE Bytes high(Bytes v) { return low(_mm256_srli_epi16(v, 4)); }
  static POTQ_INLINE Bytes bytes(int8_t v) { return _mm256_set1_epi8(v); }
  static POTQ_INLINE Bytes plus(Bytes a, Bytes b) { return _mm256_add_epi8(a, b); }
  static POTQ_INLINE Bytes shift_two(Bytes v) { return _mm256_srli_epi16(v, 2); }
  static POTQ_INLINE Bytes thirds(const uint8_t* from, int part, int half) {
    const __m256i bits = load(from);
    if (part == 0) return half ? _mm256_add_epi8(bits, bits) : _mm256_slli_epi16(bits, 2);
    return half ? _mm256_srli_epi16(bits, 1) : bits;
  }
  static POTQ_INLINE Bytes merge(Bytes codes, Bytes thirds) {
    return _mm256_or_si256(_mm256_and_si256(codes, _mm256_set1_epi8(0x33)), _mm256_and_si256(thirds, _mm256_set1_epi8(0x44)));
  }
  static POTQ_INLINE Table table(const int8_t* levels) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(levels)));
  }
  // a shuffle heeds bits 0 to 3 and 7; of merged codes bits 3 and 7 are clear
  static POTQ_INLINE Bytes lookup(Table table, Bytes codes) { return _mm256_shuffle_epi8(table, codes); }
  static POTQ_INLINE Bytes lookup_lower(Table table, Bytes codes) { return _mm256_shuffle_epi8(table, codes); }
  static POTQ_INLINE Bytes lookup_upper(Table table, Bytes codes) {
    return _mm256_shuffle_epi8(table, _mm256_srli_epi16(codes, 4));
  }
  static POTQ_INLINE Ints start(const int32_t* from) { return _mm256_set1_epi32(*from); }
  static POTQ_INLINE Ints zero() { return _mm256_setzero_si256(); }
  static POTQ_INLINE Bytes four(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
  }
  // Keeps a sum in its register: compilers join the additions of several steps to a tree, whose leaves 16 registers cannot
  // hold.
  static POTQ_INLINE Ints kept(Ints sum) {
#if defined(__GNUC__)
    __asm__("" : "+x"(sum));
#endif
    return sum;
  }
  static POTQ_INLINE Ints times(Ints a, int32_t factor) { return _mm256_mullo_epi32(a, _mm256_set1_epi32(factor)); }
  static POTQ_INLINE Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static POTQ_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static POTQ_INLINE Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static POTQ_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static POTQ_INLINE Floats floats(Ints v) { return _mm256_cvtepi32_ps(v); }
  static POTQ_INLINE Floats column(Bytes level, int j) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(level, 24 - 8 * j), 24));
  }
  static POTQ_INLINE Floats zero_floats() { return _mm256_setzero_ps(); }
  static POTQ_INLINE Floats broadcast(const float* from) { return _mm256_set1_ps(*from); }
  static POTQ_INLINE Floats load_floats(const float* from) { return _mm256_loadu_ps(from); }
  static POTQ_INLINE void store(float* to, Floats v) { _mm256_storeu_ps(to, v); }
  static POTQ_INLINE Floats float16(const uint8_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static POTQ_INLINE Floats e8m0(const uint8_t* from) {
    const __m256i exponent = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    const __m256i subnormal = _mm256_cmpeq_epi32(exponent, zero());
    return _mm256_castsi256_ps(_mm256_blendv_epi8(_mm256_slli_epi32(exponent, 23), _mm256_set1_epi32(0x400000), subnormal));
  }
};

}  // namespace
}  // namespace potq
