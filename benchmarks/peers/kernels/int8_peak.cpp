// The other roof: multiply-adds of bytes per second, out of registers, on all threads. Compiled by int8_peak.py.
//
// AVX2 multiplies and adds pairs in 16 bits (vpmaddubsw). Of levels that are small, `Pairs` pairs can be added there before
// sums are made twice as wide (vpmaddwd), which costs another multiplication. The other dot products add in 32 bits.
#include <cstdint>

#if defined(__AVX512VNNI__)
#include <immintrin.h>
using Vector = __m512i;
static inline Vector zero() { return _mm512_setzero_si512(); }
static inline Vector fill(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
template <int Pairs>
static inline Vector step(Vector sum, Vector a, Vector b) {
  for (int i = 0; i < Pairs; ++i) sum = _mm512_dpbusd_epi32(sum, a, b);
  return sum;
}
static inline int any(Vector v) { return _mm512_reduce_add_epi32(v); }
#elif defined(__AVX2__)
#include <immintrin.h>
using Vector = __m256i;
static inline Vector zero() { return _mm256_setzero_si256(); }
static inline Vector fill(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
// Always the same products would leave the loop, and additions alone be timed: `a` might have changed.
static inline Vector product(Vector a, Vector b) {
  __asm__ volatile("" : "+x"(a));
  return _mm256_maddubs_epi16(a, b);
}
template <int Pairs>
static inline Vector step(Vector sum, Vector a, Vector b) {
  Vector narrow = product(a, b);
  for (int i = 1; i < Pairs; ++i) narrow = _mm256_add_epi16(narrow, product(a, b));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
}
static inline int any(Vector v) { return _mm256_extract_epi32(v, 0); }
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
using Vector = int32x4_t;
static inline Vector zero() { return vdupq_n_s32(0); }
static inline Vector fill(int value) { return vreinterpretq_s32_s8(vdupq_n_s8(static_cast<int8_t>(value))); }
template <int Pairs>
static inline Vector step(Vector sum, Vector a, Vector b) {
  for (int i = 0; i < Pairs; ++i) sum = vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
  return sum;
}
static inline int any(Vector v) { return vaddvq_s32(v); }
#else
#error "no int8 dot product is known for this processor"
#endif

constexpr int kSums = 10;  // independent chains: enough to hide the instruction's latency, few enough for 16 registers

template <int Pairs>
static double measured(int64_t steps, int threads, int seed) {
  volatile int sink = 0;
#pragma omp parallel num_threads(threads)
  {
    Vector sums[kSums];
    for (Vector& sum : sums) sum = zero();
    const Vector a = fill(seed), b = fill(seed + 1);
    for (int64_t i = 0; i < steps; ++i) {
      for (Vector& sum : sums) sum = step<Pairs>(sum, a, b);
    }
    Vector total = zero();
    for (Vector& sum : sums) total = step<1>(total, sum, sum);
    sink = any(total);
  }
  return 2.0 * sizeof(Vector) * Pairs * kSums * static_cast<double>(steps) * threads;
}

// `steps` times `pairs` (1, 2 or 16) dot products in each chain on each of `threads` threads. Returns the operations done: a
// multiply-add is two.
extern "C" double int8_peak(int64_t steps, int threads, int seed, int pairs) {
  return pairs == 1   ? measured<1>(steps, threads, seed)
         : pairs == 2 ? measured<2>(steps, threads, seed)
                      : measured<16>(steps, threads, seed);
}
