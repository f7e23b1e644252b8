// What the parts of the product share.
#pragma once

#include "../numbers.h"
#include "layout.h"

#if defined(__GNUC__)
#define POTQ_INLINE inline __attribute__((always_inline))
#define POTQ_APART __attribute__((noinline))
#else
#define POTQ_INLINE inline
#define POTQ_APART
#endif
#if defined(__GNUC__) && !defined(POTQ_SMALL)
#define POTQ_UNROLL _Pragma("GCC unroll 16")
#else
#define POTQ_UNROLL
#endif
#if defined(__GNUC__) && !defined(POTQ_SMALL) && !defined(POTQ_ROLLED_UNITS)
#define POTQ_UNROLL_UNITS _Pragma("GCC unroll 4")
#else
#define POTQ_UNROLL_UNITS
#endif

namespace potq {
namespace {

inline int smaller(int a, int b) { return a < b ? a : b; }

}  // namespace
}  // namespace potq
