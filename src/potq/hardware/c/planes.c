#include "kernels.h"

int16_t potq_table[POTQ_TABLE_ENTRIES];

void potq_prepare_planes(const potq_matrix* matrix) {
  int16_t* table = potq_table;
  uint32_t first;
  unsigned i, j;
  for (first = 0; first < matrix->columns; first += 8, table += 256) {
    table[0] = 0;
    for (i = 0; i < 8; i++) {
      for (j = 0; j < (1u << i); j++) table[(1u << i) + j] = (int16_t)(table[j] + potq_inputs[first + i]);
    }
  }
}
