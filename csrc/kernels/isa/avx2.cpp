// AVX2, FMA and F16C (Haswell, Zen and later). vpmaddubsw multiplies unsigned by signed bytes and adds pairs in 16 bits: with
// |level| <= 128 as the unsigned operand and activations in -127..127, which take the level's sign, a pair stays within
// 2 * 128 * 127 = 32512 and never saturates.
#include <immintrin.h>

#include "../product.h"

namespace potq {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8, kPanelRows = 4, kFloatPanelRows = 2, kStart = 0, kPairFrom = 99;
  using Bytes = __m256i;
  using Mask = __m256i;
  using Table = __m256i;
  using Ints = __m256i;
  using Floats = __m256;

  static POTQ_INLINE void prefetch(const uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0); }
  static POTQ_INLINE void prefetch_write(const uint8_t* from) { __builtin_prefetch(from, 1); }
  static POTQ_INLINE Bytes load(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static POTQ_INLINE Bytes low(Bytes v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
  static POTQ_INLINE Bytes high(Bytes v) { return low(_mm256_srli_epi16(v, 4)); }
  static POTQ_INLINE Table table(const int8_t* levels) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(levels)));
  }
  // 32 bits to 32 bytes: every byte gets the 8 bits that hold its own, which is then picked
  static POTQ_INLINE Mask mask(const uint8_t* from) {
    int32_t bits;
    std::memcpy(&bits, from, 4);
    const __m256i source =
        _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i own = _mm256_set1_epi64x(int64_t(0x8040201008040201));
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), source);
    return _mm256_cmpeq_epi8(_mm256_and_si256(spread, own), own);
  }
  static POTQ_INLINE Bytes lookup(Table table, Bytes codes) { return _mm256_shuffle_epi8(table, codes); }
  static POTQ_INLINE Bytes lookup(Table unset, Table set, Bytes codes, Mask mask) {
    return _mm256_blendv_epi8(_mm256_shuffle_epi8(unset, codes), _mm256_shuffle_epi8(set, codes), mask);
  }
  static POTQ_INLINE Bytes levels(Bytes v) { return v; }
  static POTQ_INLINE Ints start(const int32_t*) { return zero(); }
  static POTQ_INLINE Ints zero() { return _mm256_setzero_si256(); }
  static POTQ_INLINE Bytes four(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
  }
  static POTQ_INLINE Ints dot(Ints sum, Bytes level, Bytes x) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(level), _mm256_sign_epi8(x, level));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
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

const Kernels kAvx2 = kernels_of<Avx2>();

}  // namespace potq
