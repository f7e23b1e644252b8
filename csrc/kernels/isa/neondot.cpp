#include "neon.h"

namespace potq {
namespace {

struct DotProduct {
  static POTQ_INLINE int32x4_t dot(int32x4_t sum, int8x16_t level, int8x16_t x) { return vdotq_s32(sum, level, x); }
};

}  // namespace

const Kernels kNeonDot = kernels_of<Neon<DotProduct>>();

}  // namespace potq
