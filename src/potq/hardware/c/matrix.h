/* A weight's levels and scales, and products with it. */
#ifndef POTQ_MATRIX_H
#define POTQ_MATRIX_H

#include <stdint.h>

#include "config.h"

typedef enum {
  POTQ_BYTES, /* a level a byte */
  POTQ_QUADS, /* four levels a word */
  POTQ_WORDS, /* codes of 2 or 4 bits in words of 32 */
  POTQ_SPLIT, /* of every 32 codes of 3 bits: two words of low bits, one of high bits */
  POTQ_PAIRS, /* two codes of 3 bits a byte, four bytes a word */
  POTQ_PLANES /* of every group: bit 0 of all codes, 32 a word, then bit 1, ... */
} potq_layout;

/* what is done for rows 0 to POTQ_TOGETHER - 1 */
#if POTQ_TOGETHER == 4
#define POTQ_ROWS(DO) DO(0) DO(1) DO(2) DO(3)
#elif POTQ_TOGETHER == 2
#define POTQ_ROWS(DO) DO(0) DO(1)
#else
#define POTQ_ROWS(DO) DO(0)
#endif

struct potq_matrix;

/* A kernel sums levels times inputs over `count` columns from `first` on, exactly, for POTQ_TOGETHER rows. The codes of the
   first row's group begin at `codes`, those of the next `stride` bytes behind. */
typedef struct {
  void (*sum)(const struct potq_matrix* matrix, const uint8_t* codes, uint32_t stride, uint32_t first, uint32_t count,
              int32_t* sums);
  void (*prepare)(const struct potq_matrix* matrix); /* tables of the inputs; may be NULL */
  const void* constants;                             /* of a grid; may be NULL */
} potq_kernel;

typedef struct potq_matrix {
  const potq_kernel* kernel;
  const void* codes;
  const int16_t* levels;  /* of every code as it is stored; NULL for POTQ_BYTES */
  const uint8_t* shifts;  /* of every group where all scales are powers of two, else NULL */
  const uint16_t* scales; /* else: sign, 5 bits of shift, 10 of mantissa */
  const int32_t* bias;    /* fixed-point, or NULL */
  uint32_t rows;
  uint32_t columns;
  uint32_t group;
  uint32_t groups;      /* in a row */
  uint32_t group_bytes; /* of codes; the last group of a row may have less */
  uint32_t row_bytes;
  int16_t exponent;
  uint8_t dropped; /* low bits of a sum that 32 bits have no room for */
  uint8_t unit;    /* where scales are powers of two: what sums are shifted left by */
  uint8_t bits;    /* of a code */
  uint8_t layout;
} potq_matrix;

extern int8_t potq_inputs[POTQ_MOST_COLUMNS]; /* of the product that is computed */

/* Round fixed-point inputs to 8 bits for products with `matrix`. `ready` is a matrix that the same inputs are loaded for,
   or NULL. */
void potq_load(const potq_matrix* matrix, const int32_t* values, const potq_matrix* ready);

/* Fixed-point results of the rows. */
void potq_multiply(const potq_matrix* matrix, int32_t* results);

/* A row as an embedding gives it. */
void potq_row(const potq_matrix* matrix, uint32_t row, int32_t* values);

#endif
