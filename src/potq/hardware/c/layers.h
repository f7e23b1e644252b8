/* Norms, attention, activation functions: all but products with weights. */
#ifndef POTQ_LAYERS_H
#define POTQ_LAYERS_H

#include <stdint.h>

#include "matrix.h"

typedef struct {
  const int16_t* gains;
  const int32_t* bias; /* or NULL */
  int8_t fraction;     /* bits of the gains behind the point */
} potq_norm;

typedef struct {
  potq_norm before_attention;
  potq_matrix query, key, value, output;
  potq_norm before_mlp;
#if POTQ_GATED
  potq_matrix gate;
#endif
  potq_matrix up, down;
} potq_block;

/* the position of the token that is computed is `position`; all before it have been */
void potq_run_block(const potq_block* block, unsigned layer, unsigned position, int32_t* hidden);
void potq_normalize(const potq_norm* norm, const int32_t* values, int32_t* results);

#endif
