#include "matrix.h"

#include <stddef.h>

#include "arithmetic.h"

int8_t potq_inputs[POTQ_MOST_COLUMNS];
static uint8_t finer[POTQ_MOST_GROUPS]; /* how much less a group's inputs are shifted than those of the coarsest */
static int coarsest;

static uint32_t width_of(const potq_matrix* matrix, uint32_t first) {
  uint32_t left = matrix->columns - first;
  return left < matrix->group ? left : matrix->group;
}

static unsigned round_group(const int32_t* values, uint32_t count, int8_t* codes) {
  uint32_t largest = 0;
  uint32_t i;
  unsigned shift;
  for (i = 0; i < count; i++) {
    uint32_t size = potq_size(values[i]);
    if (size > largest) largest = size;
  }
  shift = potq_bit_length(largest);
  shift = shift > 7 ? shift - 7 : 0;
  if (potq_scaled((int32_t)largest, -(int)shift) > 127) shift++;
  for (i = 0; i < count; i++) codes[i] = (int8_t)potq_scaled(values[i], -(int)shift);
  return shift;
}

void potq_load(const potq_matrix* matrix, const int32_t* values, const potq_matrix* ready) {
  uint32_t first;
  uint32_t group = 0;
  if (ready == NULL || ready->group != matrix->group) {
    coarsest = 0;
    for (first = 0; first < matrix->columns; first += matrix->group, group++) {
      finer[group] = (uint8_t)round_group(values + first, width_of(matrix, first), potq_inputs + first);
      if (finer[group] > coarsest) coarsest = finer[group];
    }
    while (group--) finer[group] = (uint8_t)(coarsest - finer[group]);
    ready = NULL;
  }
  if (matrix->kernel->prepare != NULL &&
      (ready == NULL || ready->kernel != matrix->kernel || ready->levels != matrix->levels)) {
    matrix->kernel->prepare(matrix);
  }
}

#ifdef POTQ_TOTALS /* a header with potq_totals(matrix, totals), which computes the rows' totals by what else there is */
#include POTQ_TOTALS
#else
/* a sum of a group times its scale, which is a power of two (32 bits have room for all of the sum) or not; `more` is shifted
   beyond */
static inline int32_t shifted_sum(const potq_matrix* matrix, int32_t sum, uint32_t index, unsigned more) {
  unsigned shift = matrix->shifts[index] + more;
  return potq_left(sum, matrix->unit) >> (shift < 31 ? shift : 31);
}

static int32_t scaled_sum(const potq_matrix* matrix, int32_t sum, uint32_t index, unsigned more) {
  uint32_t scale = matrix->scales[index];
  unsigned shift = ((scale >> 10) & 31) + more;
  sum = potq_times(sum >> matrix->dropped, 1024u + (scale & 1023u));
  return (scale >> 15 ? -sum : sum) >> (shift < 31 ? shift : 31);
}

#define TOTAL(r) int32_t total##r = 0;
#define ADD_SHIFTED(r) total##r += shifted_sum(matrix, sums[r], index + (r) * groups, more);
#define ADD_SCALED(r) total##r += scaled_sum(matrix, sums[r], index + (r) * groups, more);
#define GIVE_TOTAL(r) totals[r] = total##r;

/* Products of POTQ_TOGETHER rows, whose codes are `stride` bytes apart and whose scales `groups`. */
static void sum_rows(const potq_matrix* matrix, const uint8_t* codes, uint32_t stride, uint32_t index, uint32_t groups,
                     int32_t* totals) {
  int32_t sums[POTQ_TOGETHER];
  uint32_t first = 0;
  uint32_t group;
  POTQ_ROWS(TOTAL)
  for (group = 0; first < matrix->columns; group++, index++) {
    uint32_t count = width_of(matrix, first);
    unsigned more = finer[group];
    matrix->kernel->sum(matrix, codes, stride, first, count, sums);
    if (matrix->shifts != NULL) {
      POTQ_ROWS(ADD_SHIFTED)
    } else {
      POTQ_ROWS(ADD_SCALED)
    }
    first += count;
    codes += matrix->group_bytes;
  }
  POTQ_ROWS(GIVE_TOTAL)
}
#endif

void potq_multiply(const potq_matrix* matrix, int32_t* results) {
#ifdef POTQ_TOTALS
  uint32_t row;
  potq_totals(matrix, results);
  for (row = 0; row < matrix->rows; row++) results[row] = potq_scaled(results[row], matrix->exponent + coarsest);
#else
  const uint8_t* codes = (const uint8_t*)matrix->codes;
  int exponent = matrix->exponent + coarsest;
  int32_t totals[POTQ_TOGETHER];
  uint32_t index = 0;
  uint32_t row, i;
  uint32_t count = POTQ_TOGETHER;
  uint32_t groups = matrix->groups;
  uint32_t row_bytes = matrix->row_bytes;
  for (row = 0; row < matrix->rows; row += count) {
    if (row + POTQ_TOGETHER > matrix->rows) { /* the last rows come one by one, each in all places */
      count = 1;
      groups = 0;
      row_bytes = 0;
    }
    sum_rows(matrix, codes, row_bytes, index, groups, totals);
    for (i = 0; i < count; i++) results[row + i] = potq_scaled(totals[i], exponent);
    index += count * matrix->groups;
    codes += count * matrix->row_bytes;
  }
#endif
  if (matrix->bias == NULL) return;
  for (row = 0; row < matrix->rows; row++) {
    results[row] = potq_saturated((int64_t)results[row] + matrix->bias[row]);
  }
}

/* the level in one column of a group that begins at `codes` */
static int32_t level_at(const potq_matrix* matrix, const uint8_t* codes, uint32_t column, uint32_t count) {
  const uint32_t* words = (const uint32_t*)(const void*)codes;
  uint32_t code = 0;
  uint32_t bit;
  switch (matrix->layout) {
    case POTQ_BYTES: return ((const int8_t*)codes)[column];
    case POTQ_QUADS: return (int8_t)((words[column >> 2] >> ((column & 3) * 8)) & 255);
    case POTQ_WORDS:
      bit = column * matrix->bits;
      code = (words[bit >> 5] >> (bit & 31)) & ((1u << matrix->bits) - 1);
      break;
    case POTQ_SPLIT:
      words += (column >> 5) * 3;
      code = (words[(column >> 4) & 1] >> ((column & 15) * 2)) & 3;
      code |= ((words[2] >> (column & 31)) & 1) << 2;
      break;
    case POTQ_PAIRS: /* two codes a byte, four bytes a word */
      code = words[column >> 3] >> ((column & 6) * 4);
      code = (code >> (column & 1 ? matrix->bits : 0)) & ((1u << matrix->bits) - 1);
      break;
    default:
      for (bit = 0; bit < matrix->bits; bit++) {
        code |= ((words[(column >> 5) + bit * (count >> 5)] >> (column & 31)) & 1) << bit;
      }
  }
  return matrix->levels[code];
}

void potq_row(const potq_matrix* matrix, uint32_t row, int32_t* values) {
  const uint8_t* codes = (const uint8_t*)matrix->codes + (size_t)row * matrix->row_bytes;
  uint32_t index = row * matrix->groups;
  uint32_t first;
  uint32_t column;
  for (first = 0; first < matrix->columns; first += matrix->group, index++) {
    uint32_t count = width_of(matrix, first);
    uint32_t mantissa = 1u << matrix->unit;
    unsigned shift;
    int sign = 0;
    if (matrix->shifts != NULL) {
      shift = matrix->shifts[index];
    } else {
      shift = (matrix->scales[index] >> 10) & 31;
      mantissa = 1024u + (matrix->scales[index] & 1023u);
      sign = matrix->scales[index] >> 15;
    }
    for (column = 0; column < count; column++) {
      int32_t value = potq_times(level_at(matrix, codes, column, count), mantissa);
      values[first + column] =
          potq_scaled(sign ? -value : value, matrix->exponent + POTQ_FRACTION - matrix->dropped - (int)shift);
    }
    codes += matrix->group_bytes;
  }
}
