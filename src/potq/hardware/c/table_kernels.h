/* Forms of kernels with a table of the inputs that are loaded, and those that multiply twice at once. */
#ifndef POTQ_TABLE_KERNELS_H
#define POTQ_TABLE_KERNELS_H

#include <stddef.h>

#include "kernels.h"

extern union potq_tables {
  int16_t products[POTQ_TABLE_ENTRIES];
  uint16_t raised[POTQ_TABLE_ENTRIES];         /* sums, and POTQ_RAISED */
  uint32_t twos[(POTQ_TABLE_ENTRIES + 1) / 2]; /* two of those, which are written at once */
} potq_table;
#define POTQ_RAISED 0x8000u /* so that no sum is negative, and nothing is carried from one to the other */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define POTQ_TWO(first, second) (((uint32_t)(first) << 16) + (uint32_t)(second))
#else
#define POTQ_TWO(first, second) (((uint32_t)(second) << 16) + (uint32_t)(first))
#endif

/* table: the products of every input with every level. FILL(t, v) writes those of v */
#define POTQ_ENTRY(offset) sum += (uint32_t)(int32_t)*(const int16_t*)(const void*)((const char*)t + (offset));
#define POTQ_LOOK4(i) POTQ_ENTRY(32 * (i) + POTQ_BITS(w, 4 * (i) - 1, 30))
#define POTQ_LOOK3(i) POTQ_ENTRY(16 * (i) + (POTQ_BITS(w, 2 * (i) - 1, 6) | POTQ_BITS(h, (i) - 3, 8)))
#define POTQ_LOOK2(i) POTQ_ENTRY(8 * (i) + POTQ_BITS(w, 2 * (i) - 1, 6))
#define POTQ_LOOKS4              \
  for (; p < end; t += 8 << 4) { \
    uint32_t w = *p++;           \
    POTQ_EIGHT(POTQ_LOOK4)       \
  }
#define POTQ_LOOKS3          \
  for (; p < end; p += 3) {  \
    uint32_t h = p[2];       \
    uint32_t w = p[0];       \
    POTQ_SIXTEEN(POTQ_LOOK3) \
    t += 16 << 3;            \
    w = p[1];                \
    h >>= 16;                \
    POTQ_SIXTEEN(POTQ_LOOK3) \
    t += 16 << 3;            \
  }
#define POTQ_LOOKS2               \
  for (; p < end; t += 16 << 2) { \
    uint32_t w = *p++;            \
    POTQ_SIXTEEN(POTQ_LOOK2)      \
  }
#define POTQ_TABLE(name, BITS, FILL)                                               \
  static void name##_prepare(const potq_matrix* matrix) {                          \
    int16_t* t = potq_table.products;                                              \
    uint32_t i;                                                                    \
    for (i = 0; i < matrix->columns; i++, t += 1 << BITS) FILL(t, POTQ_LOADED(i)); \
  }                                                                                \
  POTQ_HEAD(name##_sum) {                                                          \
    const int16_t* table = potq_table.products + ((size_t)first << BITS);          \
    uint32_t r;                                                                    \
    (void)matrix;                                                                  \
    for (r = 0; r < POTQ_TOGETHER; r++, codes += stride) {                         \
      const uint32_t* p = (const uint32_t*)(const void*)codes;                     \
      const uint32_t* end = p + (count * BITS >> 5);                               \
      const int16_t* t = table;                                                    \
      uint32_t sum = 0;                                                            \
      POTQ_LOOKS##BITS sums[r] = (int32_t)sum;                                     \
    }                                                                              \
  }                                                                                \
  const potq_kernel name = {name##_sum, name##_prepare, 0};

/* Entry POSITION + index of a table, where the index is byte i of the words w and h. RISC-V has offsets of 11 bits and a sign;
   Arm shifts an index as it adds it. */
#if defined(__arm__) || defined(__aarch64__)
#define POTQ_AT(POSITION, i, MASK) t[(POSITION) + ((((i) < 4 ? w : h) >> (8 * ((i) & 3))) & (MASK))]
#else
#define POTQ_AT(POSITION, i, MASK) \
  (*(const uint16_t*)(const void*)((const char*)t + 2 * (POSITION) + POTQ_BITS((i) < 4 ? w : h, 8 * ((i) & 3) - 1, 2 * (MASK))))
#endif

/* pairs: two codes a byte, and a table of the sums that two products have */
#define POTQ_LOOK_PAIR3(i) sum += POTQ_AT(64 * ((i) - 4), i, 63);
#define POTQ_LOOK_PAIR4(i) sum += POTQ_AT(256 * ((i) - 4), i, 255);
#define POTQ_TWO_OF(i) one[i] = POTQ_TWO(given[2 * (i)], given[2 * (i) + 1]) + POTQ_TWO(POTQ_RAISED, POTQ_RAISED);
#define POTQ_PAIR(i) t[i] = one[i] + both;
#define POTQ_HALF_OF3(DO) DO(0) DO(1) DO(2) DO(3)
#define POTQ_HALF_OF4(DO) POTQ_EIGHT(DO)
#define POTQ_PAIRS_OF(name, BITS, FILL)                                                                \
  static void name##_prepare(const potq_matrix* matrix) {                                              \
    uint32_t* t = potq_table.twos;                                                                     \
    uint32_t one[1 << (BITS - 1)];                                                                     \
    int16_t given[1 << BITS];                                                                          \
    uint32_t i, j;                                                                                     \
    for (i = 0; i < matrix->columns; i += 2) {                                                         \
      FILL(given, POTQ_LOADED(i));                                                                     \
      POTQ_HALF_OF##BITS(POTQ_TWO_OF) FILL(given, POTQ_LOADED(i + 1));                                 \
      for (j = 0; j < 1 << BITS; j++, t += 1 << (BITS - 1)) {                                          \
        uint32_t both = POTQ_TWO(given[j], given[j]);                                                  \
        POTQ_HALF_OF##BITS(POTQ_PAIR)                                                                  \
      }                                                                                                \
    }                                                                                                  \
  }                                                                                                    \
  POTQ_HEAD(name##_sum) {                                                                              \
    const uint16_t* table = potq_table.raised + ((size_t)first << (2 * BITS - 1)) + (4 << (2 * BITS)); \
    uint32_t r;                                                                                        \
    (void)matrix;                                                                                      \
    for (r = 0; r < POTQ_TOGETHER; r++, codes += stride) {                                             \
      const uint32_t* p = (const uint32_t*)(const void*)codes;                                         \
      const uint32_t* end = p + (count >> 3);                                                          \
      const uint16_t* t = table;                                                                       \
      uint32_t sum = 0u - (count >> 1) * POTQ_RAISED;                                                  \
      for (; p < end; p += 2, t += 8 << (2 * BITS)) {                                                  \
        uint32_t w = p[0];                                                                             \
        uint32_t h = p[1];                                                                             \
        POTQ_EIGHT(POTQ_LOOK_PAIR##BITS)                                                               \
      }                                                                                                \
      sums[r] = (int32_t)sum;                                                                          \
    }                                                                                                  \
  }                                                                                                    \
  const potq_kernel name = {name##_sum, name##_prepare, 0};

/* planes: bits of eight codes a byte, and a table of the 256 sums that eight inputs have. COMBINE weighs the planes; a[BITS]
   is the sum of all inputs, WITH_SUM says whether it matters */
void potq_prepare_planes(const potq_matrix* matrix);
extern int32_t potq_sums[]; /* of 32 inputs each */
#define POTQ_PLANE(i) POTQ_AT(256 * ((i) - 4), i, 255)
#define POTQ_FOUR_PLANES (POTQ_PLANE(0) + POTQ_PLANE(1) + POTQ_PLANE(2) + POTQ_PLANE(3))
#define POTQ_EIGHT_PLANES ((uint32_t)POTQ_FOUR_PLANES + POTQ_PLANE(4) + POTQ_PLANE(5) + POTQ_PLANE(6) + POTQ_PLANE(7))
#define POTQ_PLANES_OF(name, BITS, WITH_SUM, COMBINE)                           \
  POTQ_HEAD(name##_sum) {                                                       \
    uint32_t a[BITS + 1];                                                       \
    uint32_t all = 0;                                                           \
    uint32_t r, i, j;                                                           \
    uint32_t plane = count >> 5; /* words */                                    \
    (void)matrix;                                                               \
    if (WITH_SUM) {                                                             \
      for (i = 0; i < plane; i++) all += (uint32_t)potq_sums[(first >> 5) + i]; \
    }                                                                           \
    for (r = 0; r < POTQ_TOGETHER; r++, codes += stride) {                      \
      const uint32_t* c = (const uint32_t*)(const void*)codes;                  \
      for (j = 0; j < BITS; j++) {                                              \
        const uint16_t* t = potq_table.raised + ((size_t)first << 5) + 4 * 256; \
        uint32_t sum = 0u - (count >> 3) * POTQ_RAISED;                         \
        for (i = plane; i >= 2; i -= 2, t += 2048) {                            \
          uint32_t w = *c++;                                                    \
          uint32_t h = *c++;                                                    \
          sum += POTQ_EIGHT_PLANES;                                             \
        }                                                                       \
        if (i) {                                                                \
          uint32_t w = *c++;                                                    \
          uint32_t h = 0;                                                       \
          (void)h;                                                              \
          sum += (uint32_t)POTQ_FOUR_PLANES;                                    \
        }                                                                       \
        a[j] = sum;                                                             \
      }                                                                         \
      a[BITS] = all;                                                            \
      sums[r] = (int32_t)COMBINE(a);                                            \
    }                                                                           \
  }                                                                             \
  const potq_kernel name = {name##_sum, potq_prepare_planes, 0};

/* dual: two products at once, SMLAD on Arm, with the table of inputs as pairs. LEVELS has both levels of two codes a byte */
#if defined(__ARM_FEATURE_DSP)
#include <arm_acle.h>
#define POTQ_DUAL_SUM(s, levels, inputs) (uint32_t)__smlad((int16x2_t)(levels), (int16x2_t)(inputs), (int32_t)(s))
#define POTQ_DUAL_TWO(word) (uint32_t)__sxtb16((int8x4_t)(word))
#else
#define POTQ_LOW(word) ((int32_t)(int16_t)((word) & 0xffff))
#define POTQ_UPPER(word) ((int32_t)(int16_t)((word) >> 16))
#define POTQ_DUAL_SUM(s, levels, inputs) \
  ((s) + (uint32_t)(POTQ_LOW(levels) * POTQ_LOW(inputs)) + (uint32_t)(POTQ_UPPER(levels) * POTQ_UPPER(inputs)))
#define POTQ_DUAL_TWO(word) \
  (((uint32_t)(int32_t)(int8_t)((word) & 255) & 0xffff) | ((uint32_t)(int32_t)(int8_t)(((word) >> 16) & 255) << 16))
#endif
#define POTQ_DUAL_INPUTS(first, second) ((POTQ_LOADED(second) << 16) | (POTQ_LOADED(first) & 0xffff))
#define POTQ_DUAL_TIMES(i, r) s##r = POTQ_DUAL_SUM(s##r, levels[(w##r >> (8 * (i))) & 255], v);
#define POTQ_DUAL_PRODUCTS(i)     \
  {                               \
    uint32_t v = t[i];            \
    POTQ_EACH(POTQ_DUAL_TIMES, i) \
  }
#define POTQ_DUAL(name, LEVELS)                                                                    \
  static void name##_prepare(const potq_matrix* matrix) {                                          \
    uint32_t i;                                                                                    \
    for (i = 0; i < matrix->columns; i += 2) potq_table.twos[i >> 1] = POTQ_DUAL_INPUTS(i, i + 1); \
  }                                                                                                \
  POTQ_BEGIN(name##_sum) const uint32_t* levels = matrix->kernel->constants;                       \
  const uint32_t* t = potq_table.twos + (first >> 1);                                              \
  POTQ_ROWS(POTQ_WORDS_OF)                                                                         \
  (void)x;                                                                                         \
  for (; count; count -= 8, t += 4) {                                                              \
    POTQ_ROWS(POTQ_WORD)                                                                           \
    POTQ_DUAL_PRODUCTS(0) POTQ_DUAL_PRODUCTS(1) POTQ_DUAL_PRODUCTS(2) POTQ_DUAL_PRODUCTS(3)        \
  }                                                                                                \
  POTQ_END const potq_kernel name = {name##_sum, name##_prepare, LEVELS};

/* dual_bytes: four levels a word */
#define POTQ_DUAL_QUAD(r)                             \
  s##r = POTQ_DUAL_SUM(s##r, POTQ_DUAL_TWO(w##r), v); \
  s##r = POTQ_DUAL_SUM(s##r, POTQ_DUAL_TWO((w##r >> 8) | (w##r << 24)), u);
#define POTQ_DUAL_QUADS(i)       \
  {                              \
    uint32_t v = t[2 * (i)];     \
    uint32_t u = t[2 * (i) + 1]; \
    POTQ_ROWS(POTQ_WORD)         \
    POTQ_ROWS(POTQ_DUAL_QUAD)    \
  }
#define POTQ_DUAL_BYTES(name)                                                   \
  static void name##_prepare(const potq_matrix* matrix) {                       \
    uint32_t i;                                                                 \
    for (i = 0; i < matrix->columns; i += 4) {                                  \
      potq_table.twos[i >> 1] = POTQ_DUAL_INPUTS(i, i + 2);                     \
      potq_table.twos[(i >> 1) + 1] = POTQ_DUAL_INPUTS(i + 1, i + 3);           \
    }                                                                           \
  }                                                                             \
  POTQ_BEGIN(name##_sum) const uint32_t* t = potq_table.twos + (first >> 1);    \
  POTQ_ROWS(POTQ_WORDS_OF)                                                      \
  (void)x;                                                                      \
  for (; count; count -= 16, t += 8) {                                          \
    POTQ_DUAL_QUADS(0) POTQ_DUAL_QUADS(1) POTQ_DUAL_QUADS(2) POTQ_DUAL_QUADS(3) \
  }                                                                             \
  POTQ_END const potq_kernel name = {name##_sum, name##_prepare, 0};

#endif
