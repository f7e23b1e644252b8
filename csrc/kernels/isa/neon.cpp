#define POTQ_ROLLED_UNITS  // a dot product is 6 instructions here: 4 units in a row would make a megabyte and a half
#include "neon.h"

namespace potq {
namespace {

struct Widening {
  static POTQ_INLINE int32x4_t dot(int32x4_t sum, int8x16_t level, int8x16_t x) {
    const int16x8_t front = vmull_s8(vget_low_s8(level), vget_low_s8(x)), back = vmull_high_s8(level, x);
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(front), vpaddlq_s16(back)));
  }
};

}  // namespace

const Kernels kNeon = kernels_of<Neon<Widening>>();

}  // namespace potq
