/* Runs parts of the program by commands on stdin: f TOKENS (logits of each), m MATRIX INPUTS (a product), e HEX (tokens). */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "weights.h"

static char line[1 << 16];
static int32_t inputs[POTQ_MOST_COLUMNS], results[POTQ_VOCABULARY + POTQ_INTERMEDIATE + POTQ_HIDDEN];
static uint16_t tokens[POTQ_CONTEXT];

static void print(const int32_t* numbers, unsigned count) {
  unsigned i;
  for (i = 0; i < count; i++) printf("%" PRId32 " ", numbers[i]);
  putchar('\n');
}

static const potq_matrix* matrix_at(long index) {
  const potq_block* block = &potq_blocks[0];
  const potq_matrix* matrices[] = {&block->query, &block->key,  &block->value, &block->output,
                                   &block->up,    &block->down, &potq_head};
  return matrices[index];
}

static void multiply(char* rest) {
  const potq_matrix* matrix = matrix_at(strtol(rest, &rest, 10));
  unsigned i;
  for (i = 0; i < matrix->columns; i++) inputs[i] = (int32_t)strtol(rest, &rest, 10);
  potq_load(matrix, inputs, NULL);
  potq_multiply(matrix, results);
  print(results, matrix->rows);
}

static void forward(char* rest) {
  char* end = rest;
  long token = strtol(rest, &end, 10);
  potq_reset();
  for (; end != rest; rest = end, token = strtol(rest, &end, 10)) {
    const int32_t* logits = potq_forward((unsigned)token);
    if (logits == NULL)
      puts("none");
    else
      print(logits, POTQ_VOCABULARY);
  }
}

static void encode(const char* hex) {
  static char text[1 << 15];
  unsigned length = 0;
  unsigned byte;
  int count, i;
  for (; sscanf(hex, "%2x", &byte) == 1; hex += 2) text[length++] = (char)byte;
  text[length] = 0;
  count = potq_encode(text, tokens, POTQ_CONTEXT);
  printf("%d", count);
  for (i = 0; i < count; i++) printf(" %d", tokens[i]);
  putchar('\n');
}

int main(void) {
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == 'm') multiply(line + 1);
    if (line[0] == 'f') forward(line + 1);
    if (line[0] == 'e') encode(line + 2);
  }
  return 0;
}
