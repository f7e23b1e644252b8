#include "table_kernels.h"

union potq_tables potq_table;
int32_t potq_sums[POTQ_MOST_COLUMNS / 32];

#define POTQ_SUM_WITH(k) more[k] = from[k] + both;

void potq_prepare_planes(const potq_matrix* matrix) {
  uint32_t* t = potq_table.twos;
  uint32_t first, i, j;
  for (first = 0; first < matrix->columns; first += 32) {
    potq_sums[first >> 5] = 0;
    for (i = 0; i < 32; i++) potq_sums[first >> 5] += potq_inputs[first + i];
  }
  for (first = 0; first < matrix->columns; first += 8, t += 128) {
    t[0] = POTQ_TWO(POTQ_RAISED, POTQ_RAISED + POTQ_LOADED(first));
    for (i = 1; i < 8; i++) { /* the sums that there are, and those with one input more */
      uint32_t both = POTQ_TWO(POTQ_LOADED(first + i), POTQ_LOADED(first + i));
      uint32_t count = 1u << (i - 1);
      const uint32_t* from = t;
      uint32_t* more = t + count;
      if (count < 8) {
        for (j = 0; j < count; j++) more[j] = from[j] + both;
      } else {
        for (j = 0; j < count; j += 8, from += 8, more += 8) {
          POTQ_EIGHT(POTQ_SUM_WITH)
        }
      }
    }
  }
}
