// The encoding of AVX-512 (VL and VNNI). A CPU with it has wider kernels to choose: here AVX-VNNI's can be tried and tested.
#define POTQ_ROLLED_UNITS  // as in avx2.cpp
#include "avxvnni.h"

namespace potq {
namespace {

struct Evex {
  static POTQ_INLINE __m256i dot(__m256i sum, __m256i level, __m256i x) { return _mm256_dpbusd_epi32(sum, level, x); }
};

}  // namespace

const Kernels kAvxVnniEvex = avxvnni_kernels<Evex>();

}  // namespace potq
