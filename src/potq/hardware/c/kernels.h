/* Forms of kernels: sums of levels times 8-bit inputs, all exact. kernels.c makes those of them that the model uses.

   A form walks over the codes of a group, in POTQ_TOGETHER rows at once, so that an input is loaded once for all of them.
   BODY(i, r) sees the word `w##r` of row r, for codes of 3 bits `h##r` with their high bits, and the input `v`; it adds to
   `s##r`. Sums are unsigned, so that shifts of negative numbers are defined. */
#ifndef POTQ_KERNELS_H
#define POTQ_KERNELS_H

#include "arithmetic.h"
#include "matrix.h"

#define POTQ_INPUT(i) ((uint32_t)(int32_t)x[i])
#define POTQ_LOADED(i) ((uint32_t)(int32_t)potq_inputs[i])
#define POTQ_EIGHT(BODY) BODY(0) BODY(1) BODY(2) BODY(3) BODY(4) BODY(5) BODY(6) BODY(7)
#define POTQ_SIXTEEN(BODY) POTQ_EIGHT(BODY) BODY(8) BODY(9) BODY(10) BODY(11) BODY(12) BODY(13) BODY(14) BODY(15)

#if POTQ_TOGETHER == 4
#define POTQ_EACH(BODY, i) BODY(i, 0) BODY(i, 1) BODY(i, 2) BODY(i, 3)
#elif POTQ_TOGETHER == 2
#define POTQ_EACH(BODY, i) BODY(i, 0) BODY(i, 1)
#else
#define POTQ_EACH(BODY, i) BODY(i, 0)
#endif

#define POTQ_CODE4(i, r) ((w##r >> (4 * (i))) & 15)
#define POTQ_CODE3(i, r) (((w##r >> (2 * (i))) & 3) | (((h##r >> (i)) & 1) << 2))
#define POTQ_CODE2(i, r) ((w##r >> (2 * (i))) & 3)
#define POTQ_SIGN4(i, r) (w##r & (8u << (4 * (i))))
#define POTQ_SIGN3(i, r) (h##r & (1u << (i)))
#define POTQ_SIGN2(i, r) (w##r & (2u << (2 * (i))))
#define POTQ_MAGNITUDE4(i, r) ((w##r >> (4 * (i))) & 7)
#define POTQ_MAGNITUDE3(i, r) ((w##r >> (2 * (i))) & 3)
#define POTQ_MAGNITUDE2(i, r) ((w##r >> (2 * (i))) & 1)

#define POTQ_HEAD(name)                                                                                              \
  static void name(const potq_matrix* matrix, const uint8_t* codes, uint32_t stride, uint32_t first, uint32_t count, \
                   int32_t* sums)
#define POTQ_BEGIN(name)                   \
  POTQ_HEAD(name) {                        \
    const int8_t* x = potq_inputs + first; \
    POTQ_ROWS(POTQ_SUM)                    \
    (void)matrix;
#define POTQ_END       \
  POTQ_ROWS(POTQ_DONE) \
  }
#define POTQ_SUM(r) uint32_t s##r = 0;
#define POTQ_DONE(r) sums[r] = (int32_t)s##r;
#define POTQ_WORDS_OF(r) const uint32_t* p##r = (const uint32_t*)(const void*)(codes + (r) * stride);
#define POTQ_BYTES_OF(r) const uint8_t* p##r = codes + (r) * stride;
#define POTQ_WORD(r) uint32_t w##r = *p##r++;
#define POTQ_HALF(r) uint32_t h##r, w##r = p##r[half];
#define POTQ_HIGH(r) h##r = p##r[2] >> (16 * half);
#define POTQ_NEXT_WORDS(r) p##r += 3;
#define POTQ_NEXT_EIGHT(r) p##r += 8;

/* BEFORE and AFTER are done once; GIVE(i) gives input i to all rows */
#define POTQ_WALK4(name, BEFORE, GIVE, AFTER)                                  \
  POTQ_BEGIN(name) POTQ_ROWS(POTQ_WORDS_OF) BEFORE for (; count; count -= 8) { \
    POTQ_ROWS(POTQ_WORD)                                                       \
    POTQ_EIGHT(GIVE) x += 8;                                                   \
  }                                                                            \
  AFTER POTQ_END
#define POTQ_WALK2(name, BEFORE, GIVE, AFTER)                                   \
  POTQ_BEGIN(name) POTQ_ROWS(POTQ_WORDS_OF) BEFORE for (; count; count -= 16) { \
    POTQ_ROWS(POTQ_WORD)                                                        \
    POTQ_SIXTEEN(GIVE) x += 16;                                                 \
  }                                                                             \
  AFTER POTQ_END
#define POTQ_WALK3(name, BEFORE, GIVE, AFTER)                  \
  POTQ_BEGIN(name) uint32_t half = 0;                          \
  POTQ_ROWS(POTQ_WORDS_OF) BEFORE for (; count; count -= 16) { \
    POTQ_ROWS(POTQ_HALF)                                       \
    POTQ_ROWS(POTQ_HIGH)                                       \
    POTQ_SIXTEEN(GIVE) x += 16;                                \
    if (half) {                                                \
      POTQ_ROWS(POTQ_NEXT_WORDS)                               \
    }                                                          \
    half ^= 1;                                                 \
  }                                                            \
  AFTER POTQ_END
#define POTQ_NOTHING

/* with the input */
#define POTQ_GIVE(BODY, i)      \
  {                             \
    uint32_t v = POTQ_INPUT(i); \
    POTQ_EACH(BODY, i)          \
  }

/* shift: magnitudes 0, 1, 2, 4, ... (WITH_ZERO) or 1, 2^STEP, 4^STEP, ... behind a sign */
#define POTQ_SHIFTED(e, r, NEGATIVE) \
  {                                  \
    uint32_t shifted = v << (e);     \
    if (NEGATIVE)                    \
      s##r -= shifted;               \
    else                             \
      s##r += shifted;               \
  }
#define POTQ_ZERO_BODY(BITS, i, r)                   \
  {                                                  \
    uint32_t e = POTQ_MAGNITUDE##BITS(i, r);         \
    if (e) POTQ_SHIFTED(e, r, POTQ_SIGN##BITS(i, r)) \
  }
#define POTQ_ZERO4(i, r) POTQ_ZERO_BODY(4, i, r)
#define POTQ_ZERO3(i, r) POTQ_ZERO_BODY(3, i, r)
#define POTQ_ZERO2(i, r) POTQ_ZERO_BODY(2, i, r)
#define POTQ_ZEROS4(i) POTQ_GIVE(POTQ_ZERO4, i)
#define POTQ_ZEROS3(i) POTQ_GIVE(POTQ_ZERO3, i)
#define POTQ_ZEROS2(i) POTQ_GIVE(POTQ_ZERO2, i)
#define POTQ_POWER4(i, r) POTQ_SHIFTED(POTQ_MAGNITUDE4(i, r) * step, r, POTQ_SIGN4(i, r))
#define POTQ_POWER3(i, r) POTQ_SHIFTED(POTQ_MAGNITUDE3(i, r) * step, r, POTQ_SIGN3(i, r))
#define POTQ_POWER2(i, r) POTQ_SHIFTED(POTQ_MAGNITUDE2(i, r) * step, r, POTQ_SIGN2(i, r))
#define POTQ_POWERS4(i) POTQ_GIVE(POTQ_POWER4, i)
#define POTQ_POWERS3(i) POTQ_GIVE(POTQ_POWER3, i)
#define POTQ_POWERS2(i) POTQ_GIVE(POTQ_POWER2, i)
#define POTQ_HALVE(r) s##r = (uint32_t)((int32_t)s##r >> 1);
#define POTQ_SHIFT_ZERO(name, BITS)                                                  \
  POTQ_WALK##BITS(name##_sum, POTQ_NOTHING, POTQ_ZEROS##BITS, POTQ_ROWS(POTQ_HALVE)) \
      const potq_kernel name = {name##_sum, 0, 0};
#define POTQ_SHIFT_POWER(name, BITS, STEP) \
  POTQ_WALK##BITS(name##_sum, enum {step = STEP};, POTQ_POWERS##BITS, POTQ_NOTHING) const potq_kernel name = {name##_sum, 0, 0};

/* test_and_add: every bit of a code is worth some inputs. FILL(u, v) writes what each is worth, and then what all codes are */
#define POTQ_TEST(i, r, WIDTH, bit) \
  if (w##r & ((1u << (bit)) << (WIDTH * (i)))) s##r += u[bit];
#define POTQ_TEST4(i, r) POTQ_TEST(i, r, 4, 0) POTQ_TEST(i, r, 4, 1) POTQ_TEST(i, r, 4, 2) POTQ_TEST(i, r, 4, 3)
#define POTQ_TEST3(i, r) POTQ_TEST(i, r, 2, 0) POTQ_TEST(i, r, 2, 1) if (h##r & (1u << (i))) s##r += u[2];
#define POTQ_TEST2(i, r) POTQ_TEST(i, r, 2, 0) POTQ_TEST(i, r, 2, 1)
#define POTQ_TESTS4(i)       \
  {                          \
    uint32_t u[5];           \
    fill(u, POTQ_INPUT(i));  \
    all += u[4];             \
    POTQ_EACH(POTQ_TEST4, i) \
  }
#define POTQ_TESTS3(i)       \
  {                          \
    uint32_t u[4];           \
    fill(u, POTQ_INPUT(i));  \
    all += u[3];             \
    POTQ_EACH(POTQ_TEST3, i) \
  }
#define POTQ_TESTS2(i)       \
  {                          \
    uint32_t u[3];           \
    fill(u, POTQ_INPUT(i));  \
    all += u[2];             \
    POTQ_EACH(POTQ_TEST2, i) \
  }
#define POTQ_ADD_ALL(r) s##r += all;
#define POTQ_TEST_AND_ADD(name, BITS, FILL)                                                     \
  POTQ_WALK##BITS(name##_sum, uint32_t all = 0; void (*const fill)(uint32_t*, uint32_t) = FILL; \
                  , POTQ_TESTS##BITS, POTQ_ROWS(POTQ_ADD_ALL)) const potq_kernel name = {name##_sum, 0, 0};

/* multiply: a look-up and a product */
#define POTQ_TIMES4(i, r) s##r += (uint32_t)(levels[POTQ_CODE4(i, r)] * (int32_t)v);
#define POTQ_TIMES3(i, r) s##r += (uint32_t)(levels[POTQ_CODE3(i, r)] * (int32_t)v);
#define POTQ_TIMES2(i, r) s##r += (uint32_t)(levels[POTQ_CODE2(i, r)] * (int32_t)v);
#define POTQ_PRODUCTS4(i) POTQ_GIVE(POTQ_TIMES4, i)
#define POTQ_PRODUCTS3(i) POTQ_GIVE(POTQ_TIMES3, i)
#define POTQ_PRODUCTS2(i) POTQ_GIVE(POTQ_TIMES2, i)
#define POTQ_MULTIPLY(name, BITS)                                                                         \
  POTQ_WALK##BITS(name##_sum, const int16_t* levels = matrix->levels;, POTQ_PRODUCTS##BITS, POTQ_NOTHING) \
      const potq_kernel name = {name##_sum, 0, 0};

/* Bits of a word as an offset in bytes: those of MASK, after a shift to the right (or left where POSITION is negative). One
   shift and one mask, where a code and an index would take a second shift. */
#define POTQ_BITS(word, POSITION, MASK) (((POSITION) < 0 ? (word) << (-(POSITION) & 31) : (word) >> ((POSITION) & 31)) & (MASK))

/* buckets: a sum of inputs for every code; COMBINE weighs them with their levels */
#define POTQ_EMPTY(i, r) b##r[i] = 0; /* an initializer may become a call of memset */
#define POTQ_EMPTIES(i) POTQ_EACH(POTQ_EMPTY, i)
#define POTQ_CLEAR4 POTQ_SIXTEEN
#define POTQ_CLEAR3 POTQ_EIGHT
#define POTQ_CLEAR2(BODY) BODY(0) BODY(1) BODY(2) BODY(3)
#define POTQ_BUCKETS4(r) uint32_t b##r[16];
#define POTQ_BUCKETS3(r) uint32_t b##r[8];
#define POTQ_BUCKETS2(r) uint32_t b##r[4];
#define POTQ_BUCKET(offset, r) *(uint32_t*)(void*)((char*)b##r + (offset)) += v;
#define POTQ_ADD4(i, r) POTQ_BUCKET(POTQ_BITS(w##r, 4 * (i) - 2, 60), r)
#define POTQ_ADD3(i, r) POTQ_BUCKET(POTQ_BITS(w##r, 2 * (i) - 2, 12) | POTQ_BITS(h##r, (i) - 4, 16), r)
#define POTQ_ADD2(i, r) POTQ_BUCKET(POTQ_BITS(w##r, 2 * (i) - 2, 12), r)
#define POTQ_ADDS4(i) POTQ_GIVE(POTQ_ADD4, i)
#define POTQ_ADDS3(i) POTQ_GIVE(POTQ_ADD3, i)
#define POTQ_ADDS2(i) POTQ_GIVE(POTQ_ADD2, i)
#define POTQ_COMBINE(r) s##r = combine(b##r);
#define POTQ_BUCKETS(name, BITS, COMBINE)                                                                                 \
  POTQ_WALK##BITS(name##_sum, uint32_t (*const combine)(const uint32_t*) = COMBINE;                                       \
                  POTQ_ROWS(POTQ_BUCKETS##BITS) POTQ_CLEAR##BITS(POTQ_EMPTIES), POTQ_ADDS##BITS, POTQ_ROWS(POTQ_COMBINE)) \
      const potq_kernel name = {name##_sum, 0, 0};

/* levels a byte: by multiplication, or by shifts and adds */
#define POTQ_TIMES_BYTE(i, r) s##r += (uint32_t)((int8_t)p##r[i] * (int32_t)v);
#define POTQ_TIMES_BYTES(i) POTQ_GIVE(POTQ_TIMES_BYTE, i)
#define POTQ_MULTIPLY_BYTES(name)     \
  POTQ_BEGIN(name##_sum)              \
  POTQ_ROWS(POTQ_BYTES_OF)            \
  for (; count; count -= 8, x += 8) { \
    POTQ_EIGHT(POTQ_TIMES_BYTES)      \
    POTQ_ROWS(POTQ_NEXT_EIGHT)        \
  }                                   \
  POTQ_END const potq_kernel name = {name##_sum, 0, 0};
#define POTQ_ADD_BYTE(i, r)                       \
  {                                               \
    int32_t weight = (int8_t)*p##r++;             \
    uint32_t shifted = v;                         \
    if (weight < 0) {                             \
      weight = -weight;                           \
      shifted = 0u - shifted;                     \
    }                                             \
    for (; weight; weight >>= 1, shifted <<= 1) { \
      if (weight & 1) s##r += shifted;            \
    }                                             \
  }
#define POTQ_ADD_BYTES(name) \
  POTQ_BEGIN(name##_sum)     \
  POTQ_ROWS(POTQ_BYTES_OF)   \
  for (; count; count--, x++) POTQ_GIVE(POTQ_ADD_BYTE, 0) POTQ_END const potq_kernel name = {name##_sum, 0, 0};

#endif
