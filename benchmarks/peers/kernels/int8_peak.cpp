// The other roof: multiply-adds of bytes per second, out of registers, on all threads. Compiled by int8_peak.py.
#include <cstdint>

#if defined(__AVX512VNNI__)
#include <immintrin.h>
using Vector = __m512i;
static inline Vector zero() { return _mm512_setzero_si512(); }
static inline Vector fill(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
static inline Vector step(Vector sum, Vector a, Vector b) { return _mm512_dpbusd_epi32(sum, a, b); }
static inline int any(Vector v) { return _mm512_reduce_add_epi32(v); }
#elif defined(__AVX2__)
#include <immintrin.h>
using Vector = __m256i;
static inline Vector zero() { return _mm256_setzero_si256(); }
static inline Vector fill(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
static inline Vector step(Vector sum, Vector a, Vector b) {
  const Vector pairs = _mm256_maddubs_epi16(a, b);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
static inline int any(Vector v) { return _mm256_extract_epi32(v, 0); }
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
using Vector = int32x4_t;
static inline Vector zero() { return vdupq_n_s32(0); }
static inline Vector fill(int value) { return vreinterpretq_s32_s8(vdupq_n_s8(static_cast<int8_t>(value))); }
static inline Vector step(Vector sum, Vector a, Vector b) {
  return vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
}
static inline int any(Vector v) { return vaddvq_s32(v); }
#else
#error "no int8 dot product is known for this processor"
#endif

constexpr int kSums = 12;  // independent chains: enough to hide the instruction's latency, few enough for 16 registers

// `steps` dot products in each of 12 chains on each of `threads` threads. Returns the operations done (2 a multiply-add).
extern "C" double int8_peak(int64_t steps, int threads, int seed) {
  volatile int sink = 0;
#pragma omp parallel num_threads(threads)
  {
    Vector sums[kSums];
    for (Vector& sum : sums) sum = zero();
    const Vector a = fill(seed), b = fill(seed + 1);
    for (int64_t i = 0; i < steps; ++i) {
      for (Vector& sum : sums) sum = step(sum, a, b);
    }
    Vector total = zero();
    for (Vector& sum : sums) total = step(total, sum, sum);
    sink = any(total);
  }
  return 2.0 * sizeof(Vector) * kSums * static_cast<double>(steps) * threads;
}
