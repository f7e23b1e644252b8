/* Cycles of the tables of inputs and of products with all matrices of the blocks, and a checksum of each; at last the cycles
   of a product of SIDE floats. In hexadecimal. */
#include "board.h"
#include "matrix.h"
#include "weights.h"

#define SIDE 128
static float float_weights[SIDE], float_inputs[SIDE];
static volatile float result;
static int32_t values[POTQ_MOST_COLUMNS], results[POTQ_MOST_COLUMNS];

static void put_number(uint32_t number) {
  int shift;
  for (shift = 28; shift >= 0; shift -= 4) board_put("0123456789abcdef"[(number >> shift) & 15]);
  board_put(' ');
}

static void measure(const potq_matrix* matrix) {
  uint32_t sum = 0;
  uint32_t began, made, done, i;
  potq_load(matrix, values, 0);
  began = board_clock(); /* inputs are rounded; the table is made once more, and counts */
  if (matrix->kernel->prepare) matrix->kernel->prepare(matrix);
  made = board_clock();
  potq_multiply(matrix, results);
  done = board_clock();
  for (i = 0; i < matrix->rows; i++) sum = sum * 31 + (uint32_t)results[i];
  put_number(made - began);
  put_number(done - made);
  put_number(sum);
  board_put('\n');
}

int main(void) {
  uint32_t state = 1;
  unsigned i;
  board_start();
  for (i = 0; i < POTQ_MOST_COLUMNS; i++) {
    state = state * 1664525u + 1013904223u;
    values[i] = (int32_t)(state >> 14) - (1 << 17);
  }
  for (i = 0; i < POTQ_LAYERS; i++) {
    const potq_block* block = &potq_blocks[i];
    const potq_matrix* matrices[] = {&block->query, &block->key, &block->value, &block->output,
                                     &block->gate,  &block->up,  &block->down};
    unsigned j;
    for (j = 0; j < 7; j++) measure(matrices[j]);
  }
  for (i = 0; i < SIDE; i++) {
    float_weights[i] = (float)values[i] * 0.001f;
    float_inputs[i] = (float)values[SIDE - 1 - i] * 0.001f;
  }
  {
    uint32_t began = board_clock();
    float sum = 0;
    for (i = 0; i < SIDE; i++) sum += float_weights[i] * float_inputs[i];
    result = sum;
    put_number(board_clock() - began);
    board_put('\n');
  }
  board_stop();
  return 0;
}
