// NEON (every 64-bit Arm). The dot product is all that generations differ in: neon.cpp multiplies and widens, neondot.cpp has
// an instruction for it, neoni8mm.cpp one for two rows by two.
#pragma once

#include <arm_neon.h>

#include "../product.h"

namespace potq {
namespace {

template <class Dot>
struct Neon {
  static constexpr int kLanes = 4, kPanelRows = 4, kFloatPanelRows = 2, kPairFrom = 99, kNarrowSteps = 0;
  static constexpr bool kDecodesFirst = false, kPairsRows = false, kOneRowApart = false;
  using Bytes = uint8x16_t;
  using Table = uint8x16_t;
  using Ints = int32x4_t;
  using Floats = float32x4_t;

  static int offset(const potq_format&) { return 0; }
  static int narrow_steps(const potq_format&) { return kNarrowSteps; }
  static POTQ_INLINE void prefetch(const uint8_t* from) { __builtin_prefetch(from); }
  static POTQ_INLINE void prefetch_write(const uint8_t* from) { __builtin_prefetch(from, 1); }
  static POTQ_INLINE Bytes load(const uint8_t* from) { return vld1q_u8(from); }
  static POTQ_INLINE void save(uint8_t* to, Bytes v) { vst1q_u8(to, v); }
  static POTQ_INLINE Bytes low(Bytes v) { return vandq_u8(v, vdupq_n_u8(15)); }
  static POTQ_INLINE Bytes high(Bytes v) { return vshrq_n_u8(v, 4); }
  static POTQ_INLINE Table table(const int8_t* levels) { return vreinterpretq_u8_s8(vld1q_s8(levels)); }
  static POTQ_INLINE Bytes bytes(int8_t v) { return vdupq_n_u8(uint8_t(v)); }
  static POTQ_INLINE Bytes plus(Bytes a, Bytes b) { return vaddq_u8(a, b); }
  static POTQ_INLINE Bytes shift_two(Bytes v) { return vshrq_n_u8(v, 2); }
  static POTQ_INLINE Bytes thirds(const uint8_t* from, int part, int half) {
    const uint8x16_t bits = vld1q_u8(from + part % 2 * 16);
    if (part < 2) return half ? vshlq_n_u8(bits, 1) : vshlq_n_u8(bits, 2);
    return half ? vshrq_n_u8(bits, 1) : bits;
  }
  static POTQ_INLINE Bytes merge(Bytes codes, Bytes thirds) {
    return vandq_u8(vbslq_u8(vdupq_n_u8(0x33), codes, thirds), vdupq_n_u8(0x77));
  }
  static POTQ_INLINE Bytes lookup(Table table, Bytes codes) { return vqtbl1q_u8(table, codes); }
  static POTQ_INLINE Bytes lookup_lower(Table table, Bytes codes) { return vqtbl1q_u8(table, low(codes)); }
  static POTQ_INLINE Bytes lookup_upper(Table table, Bytes codes) { return vqtbl1q_u8(table, high(codes)); }
  static POTQ_INLINE Ints start(const int32_t*) { return zero(); }
  static POTQ_INLINE Ints zero() { return vdupq_n_s32(0); }
  static POTQ_INLINE int8x16_t four(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  }
  static POTQ_INLINE Ints dot(Ints sum, Bytes level, int8x16_t x) { return Dot::dot(sum, vreinterpretq_s8_u8(level), x); }
  static POTQ_INLINE Ints times(Ints a, int32_t factor) { return vmulq_n_s32(a, factor); }
  static POTQ_INLINE Ints add(Ints a, Ints b) { return vaddq_s32(a, b); }
  static POTQ_INLINE Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static POTQ_INLINE Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
  static POTQ_INLINE Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static POTQ_INLINE Floats floats(Ints v) { return vcvtq_f32_s32(v); }
  static POTQ_INLINE Floats column(Bytes level, int j) {
    const int32x4_t byte = vshlq_s32(vreinterpretq_s32_u8(level), vdupq_n_s32(24 - 8 * j));
    return vcvtq_f32_s32(vshrq_n_s32(byte, 24));
  }
  static POTQ_INLINE Floats zero_floats() { return vdupq_n_f32(0); }
  static POTQ_INLINE Floats broadcast(const float* from) { return vdupq_n_f32(*from); }
  static POTQ_INLINE Floats load_floats(const float* from) { return vld1q_f32(from); }
  static POTQ_INLINE void store(float* to, Floats v) { vst1q_f32(to, v); }
  static POTQ_INLINE Floats float16(const uint8_t* from) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from))); }
  static POTQ_INLINE Floats e8m0(const uint8_t* from) {
    uint32_t four;
    std::memcpy(&four, from, 4);
    const uint32x4_t exponent = vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)))));
    const uint32x4_t subnormal = vceqq_u32(exponent, vdupq_n_u32(0));
    return vreinterpretq_f32_u32(vbslq_u32(subnormal, vdupq_n_u32(0x400000), vshlq_n_u32(exponent, 23)));
  }
};

}  // namespace
}  // namespace potq
