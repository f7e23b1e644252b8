// The encoding of AVX-VNNI (Intel's client CPUs since Alder Lake, Zen 5).
#define POTQ_ROLLED_UNITS  // as in avx2.cpp
#include "avxvnni.h"

namespace potq {
namespace {

struct Vex {
  static POTQ_INLINE __m256i dot(__m256i sum, __m256i level, __m256i x) { return _mm256_dpbusd_avx_epi32(sum, level, x); }
};

}  // namespace

const Kernels kAvxVnni = avxvnni_kernels<Vex>();

}  // namespace potq
