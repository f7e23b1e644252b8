#include "kernels.h"

int16_t potq_table[POTQ_TABLE_ENTRIES];
int32_t potq_sums[POTQ_MOST_COLUMNS / 32];

#define POTQ_SUM_OF(k) s[k] = (int16_t)(t[k] + v);

void potq_prepare_planes(const potq_matrix* matrix) {
  int16_t* table = potq_table;
  uint32_t first;
  unsigned i, j;
  for (first = 0; first < matrix->columns; first += 32) {
    potq_sums[first >> 5] = 0;
    for (i = 0; i < 32; i++) potq_sums[first >> 5] += potq_inputs[first + i];
  }
  for (first = 0; first < matrix->columns; first += 8, table += 256) {
    table[0] = 0;
    for (i = 0; i < 8; i++) {
      int32_t v = potq_inputs[first + i];
      const int16_t* t = table;
      int16_t* s = table + (1u << i);
      if (i < 3) {
        for (j = 0; j < (1u << i); j++) s[j] = (int16_t)(t[j] + v);
      } else {
        for (j = 0; j < (1u << i); j += 8, t += 8, s += 8) {
          POTQ_EIGHT(POTQ_SUM_OF)
        }
      }
    }
  }
}
