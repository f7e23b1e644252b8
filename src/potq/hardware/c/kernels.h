/* Forms of kernels: sums of levels times 8-bit inputs, all exact. kernels.c makes those of them that the model uses.

   A form walks over the codes of a group; BODY(i) sees the word `w` (and `h`, the high bits of codes of 3 bits), the inputs
   `x`, and adds to `sum`. Sums are unsigned, so that shifts of negative numbers are defined. */
#ifndef POTQ_KERNELS_H
#define POTQ_KERNELS_H

#include "arithmetic.h"
#include "matrix.h"

#define POTQ_INPUT(i) ((uint32_t)(int32_t)x[i])
#define POTQ_EIGHT(BODY) BODY(0) BODY(1) BODY(2) BODY(3) BODY(4) BODY(5) BODY(6) BODY(7)
#define POTQ_SIXTEEN(BODY) POTQ_EIGHT(BODY) BODY(8) BODY(9) BODY(10) BODY(11) BODY(12) BODY(13) BODY(14) BODY(15)

#define POTQ_CODE4(i) ((w >> (4 * (i))) & 15)
#define POTQ_CODE3(i) (((w >> (2 * (i))) & 3) | (((h >> (i)) & 1) << 2))
#define POTQ_CODE2(i) ((w >> (2 * (i))) & 3)
#define POTQ_SIGN4(i) (w & (8u << (4 * (i))))
#define POTQ_SIGN3(i) (h & (1u << (i)))
#define POTQ_SIGN2(i) (w & (2u << (2 * (i))))
#define POTQ_MAGNITUDE4(i) ((w >> (4 * (i))) & 7)
#define POTQ_MAGNITUDE3(i) ((w >> (2 * (i))) & 3)
#define POTQ_MAGNITUDE2(i) ((w >> (2 * (i))) & 1)

#define POTQ_BEGIN(name)                                                                                 \
  static int32_t name(const potq_matrix* matrix, const uint8_t* codes, uint32_t first, uint32_t count) { \
    const uint32_t* p = (const uint32_t*)(const void*)codes;                                             \
    const int8_t* x = potq_inputs + first;                                                               \
    uint32_t sum = 0;                                                                                    \
    (void)matrix;                                                                                        \
    (void)x;

#define POTQ_WALK4(name, BEFORE, BODY, NEXT, AFTER)   \
  POTQ_BEGIN(name) BEFORE for (; count; count -= 8) { \
    uint32_t w = *p++;                                \
    POTQ_EIGHT(BODY) x += 8;                          \
    NEXT(8)                                           \
  }                                                   \
  AFTER return (int32_t)sum;                          \
  }
#define POTQ_WALK2(name, BEFORE, BODY, NEXT, AFTER)    \
  POTQ_BEGIN(name) BEFORE for (; count; count -= 16) { \
    uint32_t w = *p++;                                 \
    POTQ_SIXTEEN(BODY) x += 16;                        \
    NEXT(16)                                           \
  }                                                    \
  AFTER return (int32_t)sum;                           \
  }
#define POTQ_WALK3(name, BEFORE, BODY, NEXT, AFTER)            \
  POTQ_BEGIN(name) BEFORE for (; count; count -= 32, p += 3) { \
    uint32_t h = p[2];                                         \
    uint32_t w = p[0];                                         \
    POTQ_SIXTEEN(BODY) x += 16;                                \
    NEXT(16)                                                   \
    w = p[1];                                                  \
    h >>= 16;                                                  \
    POTQ_SIXTEEN(BODY) x += 16;                                \
    NEXT(16)                                                   \
  }                                                            \
  AFTER return (int32_t)sum;                                   \
  }
#define POTQ_NOTHING
#define POTQ_STAY(n)

/* shift: magnitudes 0, 1, 2, 4, ... (WITH_ZERO) or 1, 2^STRIDE, 4^STRIDE, ... behind a sign */
#define POTQ_SHIFTED(e, i, NEGATIVE)         \
  {                                          \
    uint32_t shifted = POTQ_INPUT(i) << (e); \
    if (NEGATIVE)                            \
      sum -= shifted;                        \
    else                                     \
      sum += shifted;                        \
  }
#define POTQ_ZERO_BODY(BITS, i)                   \
  {                                               \
    uint32_t e = POTQ_MAGNITUDE##BITS(i);         \
    if (e) POTQ_SHIFTED(e, i, POTQ_SIGN##BITS(i)) \
  }
#define POTQ_ZERO4(i) POTQ_ZERO_BODY(4, i)
#define POTQ_ZERO3(i) POTQ_ZERO_BODY(3, i)
#define POTQ_ZERO2(i) POTQ_ZERO_BODY(2, i)
#define POTQ_POWER4(i) POTQ_SHIFTED(POTQ_MAGNITUDE4(i) * stride, i, POTQ_SIGN4(i))
#define POTQ_POWER3(i) POTQ_SHIFTED(POTQ_MAGNITUDE3(i) * stride, i, POTQ_SIGN3(i))
#define POTQ_POWER2(i) POTQ_SHIFTED(POTQ_MAGNITUDE2(i) * stride, i, POTQ_SIGN2(i))
#define POTQ_SHIFT_ZERO(name, BITS)                                                                           \
  POTQ_WALK##BITS(name##_sum, POTQ_NOTHING, POTQ_ZERO##BITS, POTQ_STAY, sum = (uint32_t)((int32_t)sum >> 1);) \
      const potq_kernel name = {name##_sum, 0};
#define POTQ_SHIFT_POWER(name, BITS, STRIDE)                                                      \
  POTQ_WALK##BITS(name##_sum, enum {stride = STRIDE};, POTQ_POWER##BITS, POTQ_STAY, POTQ_NOTHING) \
      const potq_kernel name = {name##_sum, 0};

/* multiply: a look-up and a product */
#define POTQ_TIMES4(i) sum += (uint32_t)((int32_t)levels[POTQ_CODE4(i)] * x[i]);
#define POTQ_TIMES3(i) sum += (uint32_t)((int32_t)levels[POTQ_CODE3(i)] * x[i]);
#define POTQ_TIMES2(i) sum += (uint32_t)((int32_t)levels[POTQ_CODE2(i)] * x[i]);
#define POTQ_MULTIPLY(name, BITS)                                                                                 \
  POTQ_WALK##BITS(name##_sum, const int16_t* levels = matrix->levels;, POTQ_TIMES##BITS, POTQ_STAY, POTQ_NOTHING) \
      const potq_kernel name = {name##_sum, 0};

/* Bits of a word as an offset in bytes: those of MASK, after a shift to the right (or left where POSITION is negative). One
   shift and one mask, where a code and an index would take a second shift. */
#define POTQ_BITS(word, POSITION, MASK) (((POSITION) < 0 ? (word) << (-(POSITION) & 31) : (word) >> ((POSITION) & 31)) & (MASK))

/* buckets: a sum of inputs for every code; COMBINE weighs them with their levels */
#define POTQ_EMPTY(i) b[i] = 0; /* an initializer may become a call of memset */
#define POTQ_CLEAR4 POTQ_SIXTEEN
#define POTQ_CLEAR3 POTQ_EIGHT
#define POTQ_CLEAR2(BODY) BODY(0) BODY(1) BODY(2) BODY(3)
#define POTQ_BUCKET(offset, i) *(uint32_t*)(void*)((char*)b + (offset)) += POTQ_INPUT(i);
#define POTQ_ADD4(i) POTQ_BUCKET(POTQ_BITS(w, 4 * (i) - 2, 60), i)
#define POTQ_ADD3(i) POTQ_BUCKET(POTQ_BITS(w, 2 * (i) - 2, 12) | POTQ_BITS(h, (i) - 4, 16), i)
#define POTQ_ADD2(i) POTQ_BUCKET(POTQ_BITS(w, 2 * (i) - 2, 12), i)
#define POTQ_BUCKETS(name, BITS, COMBINE)                                                                     \
  POTQ_WALK##BITS(name##_sum, uint32_t b[1 << BITS]; POTQ_CLEAR##BITS(POTQ_EMPTY), POTQ_ADD##BITS, POTQ_STAY, \
                                                     sum = COMBINE(b);) const potq_kernel name = {name##_sum, 0};

extern int16_t potq_table[]; /* of the inputs that are loaded, in all kernels below */

/* table: the products of every input with every level. FILL(t, v) writes those of v */
#define POTQ_ENTRY(offset) sum += (uint32_t)(int32_t)*(const int16_t*)(const void*)((const char*)t + (offset));
#define POTQ_LOOK4(i) POTQ_ENTRY(32 * (i) + POTQ_BITS(w, 4 * (i) - 1, 30))
#define POTQ_LOOK3(i) POTQ_ENTRY(16 * (i) + (POTQ_BITS(w, 2 * (i) - 1, 6) | POTQ_BITS(h, (i) - 3, 8)))
#define POTQ_LOOK2(i) POTQ_ENTRY(8 * (i) + POTQ_BITS(w, 2 * (i) - 1, 6))
#define POTQ_STEP4(n) t += 16 * (n);
#define POTQ_STEP3(n) t += 8 * (n);
#define POTQ_STEP2(n) t += 4 * (n);
#define POTQ_TABLE(name, BITS, FILL)                                                                  \
  static void name##_prepare(const potq_matrix* matrix) {                                             \
    int16_t* t = potq_table;                                                                          \
    uint32_t i;                                                                                       \
    for (i = 0; i < matrix->columns; i++, t += 1 << BITS) FILL(t, (uint32_t)(int32_t)potq_inputs[i]); \
  }                                                                                                   \
  POTQ_WALK##BITS(name##_sum, const int16_t* t = potq_table + ((size_t)first << BITS);                \
                  , POTQ_LOOK##BITS, POTQ_STEP##BITS, POTQ_NOTHING) const potq_kernel name = {name##_sum, name##_prepare};

/* pairs: two codes of 3 bits a byte, and a table of the 64 sums of two products */
#define POTQ_LOOK_PAIR(i) sum += (uint32_t)(int32_t)t[64 * (i) + codes[i]];
#define POTQ_PAIR(i) s[i] = (int16_t)(v + one[i]);
#define POTQ_PAIRS_OF(name, FILL)                                              \
  static void name##_prepare(const potq_matrix* matrix) {                      \
    int16_t* t = potq_table;                                                   \
    int16_t one[8], other[8];                                                  \
    uint32_t i;                                                                \
    unsigned j;                                                                \
    for (i = 0; i < matrix->columns; i += 2, t += 64) {                        \
      FILL(one, (uint32_t)(int32_t)potq_inputs[i]);                            \
      FILL(other, (uint32_t)(int32_t)potq_inputs[i + 1]);                      \
      for (j = 0; j < 8; j++) {                                                \
        int32_t v = other[j];                                                  \
        int16_t* s = t + 8 * j;                                                \
        POTQ_EIGHT(POTQ_PAIR)                                                  \
      }                                                                        \
    }                                                                          \
  }                                                                            \
  POTQ_BEGIN(name##_sum) const int16_t* t = potq_table + ((size_t)first << 5); \
  (void)p;                                                                     \
  for (; count; count -= 16, codes += 8, t += 512) {                           \
    POTQ_EIGHT(POTQ_LOOK_PAIR)                                                 \
  }                                                                            \
  return (int32_t)sum;                                                         \
  }                                                                            \
  const potq_kernel name = {name##_sum, name##_prepare};

/* planes: bits of eight codes a byte, and a table of the 256 sums that eight inputs have. COMBINE weighs the planes; a[BITS]
   is the sum of all inputs, WITH_SUM says whether it matters */
void potq_prepare_planes(const potq_matrix* matrix);
extern int32_t potq_sums[]; /* of 32 inputs each */
#define POTQ_PLANE(i) (uint32_t)(int32_t)s[256 * (i) + codes[i]]
#define POTQ_FOUR_PLANES (POTQ_PLANE(0) + POTQ_PLANE(1) + POTQ_PLANE(2) + POTQ_PLANE(3))
#define POTQ_EIGHT_PLANES (POTQ_FOUR_PLANES + POTQ_PLANE(4) + POTQ_PLANE(5) + POTQ_PLANE(6) + POTQ_PLANE(7))
#define POTQ_PLANES_OF(name, BITS, WITH_SUM, COMBINE)                                  \
  POTQ_BEGIN(name##_sum) uint32_t a[BITS + 1];                                         \
  uint32_t i, j;                                                                       \
  (void)p;                                                                             \
  for (j = 0; j < BITS; j++) {                                                         \
    const int16_t* s = potq_table + ((size_t)first << 5);                              \
    sum = 0;                                                                           \
    for (i = count; i >= 64; i -= 64, s += 2048, codes += 8) sum += POTQ_EIGHT_PLANES; \
    if (i) {                                                                           \
      sum += POTQ_FOUR_PLANES;                                                         \
      codes += 4;                                                                      \
    }                                                                                  \
    a[j] = sum;                                                                        \
  }                                                                                    \
  a[BITS] = 0;                                                                         \
  if (WITH_SUM) {                                                                      \
    for (i = 0; i < count >> 5; i++) a[BITS] += (uint32_t)potq_sums[(first >> 5) + i]; \
  }                                                                                    \
  sum = COMBINE(a);                                                                    \
  return (int32_t)sum;                                                                 \
  }                                                                                    \
  const potq_kernel name = {name##_sum, potq_prepare_planes};

/* levels a byte: by multiplication, or by shifts and adds */
#define POTQ_TIMES_BYTE(i) sum += (uint32_t)((int32_t)(int8_t)codes[i] * x[i]);
#define POTQ_MULTIPLY_BYTES(name)                 \
  POTQ_BEGIN(name##_sum)(void) p;                 \
  for (; count; count -= 8, codes += 8, x += 8) { \
    POTQ_EIGHT(POTQ_TIMES_BYTE)                   \
  }                                               \
  return (int32_t)sum;                            \
  }                                               \
  const potq_kernel name = {name##_sum, 0};
#define POTQ_ADD_BYTES(name)                      \
  POTQ_BEGIN(name##_sum)(void) p;                 \
  for (; count; count--) {                        \
    int32_t weight = (int8_t)*codes++;            \
    uint32_t shifted = (uint32_t)(int32_t)*x++;   \
    if (weight < 0) {                             \
      weight = -weight;                           \
      shifted = 0u - shifted;                     \
    }                                             \
    for (; weight; weight >>= 1, shifted <<= 1) { \
      if (weight & 1) sum += shifted;             \
    }                                             \
  }                                               \
  return (int32_t)sum;                            \
  }                                               \
  const potq_kernel name = {name##_sum, 0};

#endif
