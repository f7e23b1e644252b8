// AVX-512 with VNNI (Ice Lake, Zen 4 and later). vpdpbusd multiplies unsigned by signed bytes: the tables hold level + 128, and
// the sum starts at -128 * (sum of the activations), which takes the 128 out again, exactly.
#include <immintrin.h>

#include "../product.h"

namespace potq {
namespace {

struct Avx512Vnni {
  static constexpr int kLanes = 16, kPanelRows = 6, kFloatPanelRows = 4, kPairFrom = 4, kNarrowSteps = 0;
  static constexpr bool kDecodesFirst = false, kPairsRows = false, kOneRowApart = false;
  using Bytes = __m512i;
  using Table = __m512i;
  using Ints = __m512i;
  using Floats = __m512;

  static int offset(const potq_format&) { return 128; }
  static int narrow_steps(const potq_format&) { return kNarrowSteps; }
  static POTQ_INLINE void prefetch(const uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0); }
  static POTQ_INLINE void prefetch_write(const uint8_t* from) { __builtin_prefetch(from, 1); }
  static POTQ_INLINE Bytes load(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static POTQ_INLINE Bytes low(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
  static POTQ_INLINE Bytes high(Bytes v) { return low(_mm512_srli_epi16(v, 4)); }
  static POTQ_INLINE Bytes bytes(int8_t v) { return _mm512_set1_epi8(v); }
  static POTQ_INLINE Bytes plus(Bytes a, Bytes b) { return _mm512_add_epi8(a, b); }
  static POTQ_INLINE Bytes shift_two(Bytes v) { return _mm512_srli_epi16(v, 2); }
  // rows 0 to 7 lie in the lower half: both halves read the same bytes and rotate them by what is theirs
  static POTQ_INLINE Bytes thirds(const uint8_t* from, int, int half) {
    const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    const __m512i even = _mm512_inserti64x4(_mm512_set1_epi32(2), _mm256_setzero_si256(), 1);
    const __m512i odd = _mm512_inserti64x4(_mm512_set1_epi32(1), _mm256_set1_epi32(31), 1);
    return _mm512_rolv_epi32(both, half ? odd : even);
  }
  static POTQ_INLINE Bytes merge(Bytes codes, Bytes thirds) {  // 0xca: where the first is set the second, else the third
    const __m512i mixed = _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x33), codes, thirds, 0xca);
    return _mm512_and_si512(mixed, _mm512_set1_epi8(0x77));
  }
  static POTQ_INLINE Table table(const int8_t* levels) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(levels)));
  }
  static POTQ_INLINE Bytes lookup(Table table, Bytes codes) { return _mm512_shuffle_epi8(table, codes); }
  static POTQ_INLINE Bytes lookup_lower(Table table, Bytes codes) { return _mm512_shuffle_epi8(table, codes); }
  static POTQ_INLINE Bytes lookup_upper(Table table, Bytes codes) {
    return _mm512_shuffle_epi8(table, _mm512_srli_epi16(codes, 4));
  }
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
    const __m512i byte = _mm512_slli_epi32(level, unsigned(24 - 8 * j));
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
