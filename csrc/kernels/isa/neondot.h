// NEON with sdot (Armv8.2 dotprod).
#pragma once

#include "neon.h"

namespace potq {
namespace {

struct DotProduct {
  static POTQ_INLINE int32x4_t dot(int32x4_t sum, int8x16_t level, int8x16_t x) { return vdotq_s32(sum, level, x); }
};

}  // namespace
}  // namespace potq
