// Number formats in portable code: float16, bfloat16 and E8M0 to and from float32, bit for bit what the hardware does.
#pragma once

#include <cstdint>
#include <cstring>

namespace potq {
namespace {  // a copy for every file: see kernels/layout.h

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float from_bfloat16(uint16_t value) { return float_of(uint32_t(value) << 16); }

inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  const uint16_t nan = uint16_t(bits >> 16 | 0x40);
  const uint16_t rounded = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  return (bits & 0x7fffffff) > 0x7f800000 ? nan : rounded;
}

// Exact. The multiplication places subnormals: their mantissa counts units of 2^-24.
inline float from_float16(uint16_t value) {
  const uint32_t sign = uint32_t(value & 0x8000) << 16, magnitude = value & 0x7fff;
  if (magnitude < 0x400) return float_of(bits_of(float(magnitude) * 0x1p-24f) | sign);
  const uint32_t rebias = magnitude >= 0x7c00 ? 0x70000000 : 0x38000000;  // inf and NaN keep the largest exponent
  return float_of(((magnitude << 13) + rebias) | sign);
}

// 2^(value - 127): the byte is float32's exponent field, but 0 stands for the subnormal 2^-127.
inline float from_e8m0(uint8_t value) { return float_of(value ? uint32_t(value) << 23 : 0x400000u); }

}  // namespace
}  // namespace potq
