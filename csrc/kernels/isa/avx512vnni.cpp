// AVX-512 with VNNI (Ice Lake, Zen 4 and later). vpdpbusd multiplies unsigned by signed bytes: the tables hold level + 128, and
// the sum starts at -128 * (sum of the activations), which takes the 128 out again, exactly.
#include <immintrin.h>

#include "../product.h"

namespace potq {
namespace {

struct Avx512Vnni {
  static constexpr int kLanes = 16, kPanelRows = 6, kFloatPanelRows = 4, kStart = -128, kPairFrom = 4;
  using Bytes = __m512i;
  using Mask = __mmask64;
  using Table = __m512i;
  using Ints = __m512i;
  using Floats = __m512;

  static POTQ_INLINE void prefetch(const uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0); }
  static POTQ_INLINE void prefetch_write(const uint8_t* from) { __builtin_prefetch(from, 1); }
  static POTQ_INLINE Bytes load(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static POTQ_INLINE Bytes low(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
  static POTQ_INLINE Bytes high(Bytes v) { return low(_mm512_srli_epi16(v, 4)); }
  static POTQ_INLINE Table table(const int8_t* levels) {
    return plus_128(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(levels))));
  }
  static POTQ_INLINE Bytes plus_128(Bytes v) { return _mm512_xor_si512(v, _mm512_set1_epi8(char(0x80))); }
  static POTQ_INLINE Mask mask(const uint8_t* from) {
    Mask mask;
    std::memcpy(&mask, from, 8);
    return mask;
  }
  static POTQ_INLINE Bytes lookup(Table table, Bytes codes) { return _mm512_shuffle_epi8(table, codes); }
  static POTQ_INLINE Bytes lookup(Table unset, Table set, Bytes codes, Mask mask) {
    return _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(unset, codes), mask, set, codes);
  }
  static POTQ_INLINE Bytes levels(Bytes v) { return plus_128(v); }
  static POTQ_INLINE Ints start(const int32_t* from) { return _mm512_set1_epi32(*from); }
  static POTQ_INLINE Ints zero() { return _mm512_setzero_si512(); }
  static POTQ_INLINE Bytes four(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
  }
  static POTQ_INLINE Ints dot(Ints sum, Bytes level, Bytes x) { return _mm512_dpbusd_epi32(sum, level, x); }
  static POTQ_INLINE Ints times(Ints a, int32_t factor) { return _mm512_mullo_epi32(a, _mm512_set1_epi32(factor)); }
  static POTQ_INLINE Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static POTQ_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static POTQ_INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static POTQ_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static POTQ_INLINE Floats floats(Ints v) { return _mm512_cvtepi32_ps(v); }
  static POTQ_INLINE Floats column(Bytes level, int j) {
    const __m512i byte = _mm512_slli_epi32(plus_128(level), unsigned(24 - 8 * j));
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(byte, 24));
  }
  static POTQ_INLINE Floats zero_floats() { return _mm512_setzero_ps(); }
  static POTQ_INLINE Floats broadcast(const float* from) { return _mm512_set1_ps(*from); }
  static POTQ_INLINE Floats load_floats(const float* from) { return _mm512_loadu_ps(from); }
  static POTQ_INLINE void store(float* to, Floats v) { _mm512_storeu_ps(to, v); }
  static POTQ_INLINE Floats float16(const uint8_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static POTQ_INLINE Floats e8m0(const uint8_t* from) {
    const __m512i exponent = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    const __mmask16 subnormal = _mm512_testn_epi32_mask(exponent, exponent);
    return _mm512_castsi512_ps(
        _mm512_mask_blend_epi32(subnormal, _mm512_slli_epi32(exponent, 23), _mm512_set1_epi32(0x400000)));
  }
};

}  // namespace

const Kernels kAvx512Vnni = kernels_of<Avx512Vnni>();

}  // namespace potq
