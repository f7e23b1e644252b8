/* Integers of 32 bits: shifts that round, sums that saturate. A fixed-point number has 16 bits behind the point. */
#ifndef POTQ_ARITHMETIC_H
#define POTQ_ARITHMETIC_H

#include <stdint.h>

#include "config.h"

#define POTQ_LIMIT INT32_MAX /* the least number is its negative, so that every number has an absolute value */
#define POTQ_FRACTION 16

/* negative numbers keep their sign when they are shifted right: the standard leaves it to the compiler */
typedef char potq_shifts_keep_signs[(-1 >> 1) == -1 ? 1 : -1];

static inline int32_t potq_left(int32_t value, unsigned bits) { return (int32_t)((uint32_t)value << bits); }

static inline uint32_t potq_size(int32_t value) { return value < 0 ? 0u - (uint32_t)value : (uint32_t)value; }

static inline int32_t potq_saturated(int64_t value) {
  return value > POTQ_LIMIT ? POTQ_LIMIT : value < -POTQ_LIMIT ? -POTQ_LIMIT : (int32_t)value;
}

/* the least n with value < 2^n */
static inline unsigned potq_bit_length(uint32_t value) {
  unsigned length = 0;
  unsigned step;
  for (step = 16; step; step >>= 1) {
    if (value >> step) {
      value >>= step;
      length += step;
    }
  }
  return length + (value != 0);
}

/* value * 2^exponent, rounded to nearest (halves up), saturated */
static inline int32_t potq_scaled(int32_t value, int exponent) {
  if (exponent >= 0) {
    int32_t largest = exponent > 30 ? 0 : POTQ_LIMIT >> exponent;
    if (value > largest) return POTQ_LIMIT;
    if (value < -largest) return -POTQ_LIMIT;
    return potq_left(value, (unsigned)exponent & 31);
  }
  if (exponent < -31) return 0;
  return (value >> -exponent) + ((value >> (-exponent - 1)) & 1);
}

/* a product with a weight or its scale; where there is no multiplier, or none is allowed, shifts and adds */
static inline int32_t potq_times(int32_t value, uint32_t factor) {
#if POTQ_MULTIPLIES
  return (int32_t)((uint32_t)value * factor);
#else
  uint32_t sum = 0;
  uint32_t shifted = (uint32_t)value;
  for (; factor; factor >>= 1) {
    if (factor & 1) sum += shifted;
    shifted <<= 1;
  }
  return (int32_t)sum;
#endif
}

/* the integer square root */
static inline uint32_t potq_root(uint32_t value) {
  uint32_t root = 0;
  uint32_t bit = 1u << 30;
  for (; bit; bit >>= 2) {
    if (value >= root + bit) {
      value -= root + bit;
      root = (root >> 1) + bit;
    } else {
      root >>= 1;
    }
  }
  return root;
}

#endif
