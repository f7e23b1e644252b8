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

/* a row's result of its total */
static int32_t finished(const potq_matrix* matrix, uint32_t row, int32_t total) {
  int32_t result = potq_scaled(total, matrix->exponent + coarsest);
  return matrix->bias == NULL ? result : potq_saturated((int64_t)result + matrix->bias[row]);
}

#ifdef POTQ_TOTALS /* a header with potq_totals(matrix, totals), which computes the rows' totals by what else there is */
#include POTQ_TOTALS
void potq_multiply(const potq_matrix* matrix, int32_t* results) {
  uint32_t row;
  potq_totals(matrix, results);
  for (row = 0; row < matrix->rows; row++) results[row] = finished(matrix, row, results[row]);
}
#else
static int32_t scaled_sum(const potq_matrix* matrix, int32_t sum, uint32_t index, unsigned more) {
  unsigned shift;
  sum >>= matrix->dropped;
  if (matrix->shifts != NULL) {
    shift = matrix->shifts[index] + more;
    return potq_left(sum, matrix->unit) >> (shift < 31 ? shift : 31);
  }
  shift = ((matrix->scales[index] >> 10) & 31) + more;
  sum = potq_times(sum, 1024u + (matrix->scales[index] & 1023u));
  if (matrix->scales[index] >> 15) sum = -sum;
  return sum >> (shift < 31 ? shift : 31);
}

void potq_multiply(const potq_matrix* matrix, int32_t* results) {
  const uint8_t* row_codes = (const uint8_t*)matrix->codes;
  uint32_t last = width_of(matrix, (matrix->groups - 1) * matrix->group); /* columns of the last group */
  uint32_t index = 0;
  uint32_t row;
  for (row = 0; row < matrix->rows; row++, row_codes += matrix->row_bytes) {
    const uint8_t* codes = row_codes;
    int32_t total = 0;
    uint32_t first = 0;
    uint32_t group;
    for (group = 1; group <= matrix->groups; group++) { /* no product here: a core may have no multiplier */
      uint32_t count = group < matrix->groups ? matrix->group : last;
      total += scaled_sum(matrix, matrix->kernel->sum(matrix, codes, first, count), index++, finer[group - 1]);
      first += count;
      codes += matrix->group_bytes;
    }
    results[row] = finished(matrix, row, total);
  }
}
#endif

/* the level in one column of a group that begins at `codes` */
static int32_t level_at(const potq_matrix* matrix, const uint8_t* codes, uint32_t column, uint32_t count) {
  const uint32_t* words = (const uint32_t*)(const void*)codes;
  uint32_t code = 0;
  uint32_t bit;
  switch (matrix->layout) {
    case POTQ_BYTES: return ((const int8_t*)codes)[column];
    case POTQ_WORDS:
      bit = column * matrix->bits;
      code = (words[bit >> 5] >> (bit & 31)) & ((1u << matrix->bits) - 1);
      break;
    case POTQ_SPLIT:
      words += (column >> 5) * 3;
      code = (words[(column >> 4) & 1] >> ((column & 15) * 2)) & 3;
      code |= ((words[2] >> (column & 31)) & 1) << 2;
      break;
    case POTQ_PAIRS: code = (codes[column >> 1] >> ((column & 1) * 3)) & 7; break;
    default:
      for (bit = 0; bit < matrix->bits; bit++) {
        code |= (uint32_t)((codes[(column >> 3) + bit * (count >> 3)] >> (column & 7)) & 1) << bit;
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
