/* What weights.c holds. */
#ifndef POTQ_WEIGHTS_H
#define POTQ_WEIGHTS_H

#include <stdint.h>

#include "layers.h"

#define POTQ_NO_TOKEN 0xffff

typedef struct {
  uint32_t pair; /* left << 16 | right; merges are sorted by it */
  uint16_t rank;
  uint16_t token;
} potq_merge;

extern const potq_block potq_blocks[POTQ_LAYERS];
extern const potq_norm potq_last_norm;
extern const potq_matrix potq_embedding, potq_head;
#if POTQ_ROTARY
extern const int16_t potq_cosines[POTQ_CONTEXT * POTQ_HEAD_DIM / 2], potq_sines[POTQ_CONTEXT * POTQ_HEAD_DIM / 2];
#else
extern const potq_matrix potq_positions;
#endif
extern const uint16_t potq_powers[256];
extern const uint16_t potq_gates[257];

/* the vocabulary; lists end with an entry that is none: POTQ_NO_TOKEN, or the largest number */
extern const char potq_pieces[];
extern const uint32_t potq_piece_starts[POTQ_PIECES + 1];
extern const uint32_t potq_symbols[POTQ_SYMBOLS + 1];
extern const uint16_t potq_symbol_tokens[POTQ_SYMBOLS + 1];
extern const potq_merge potq_merges[POTQ_MERGES + 1];
extern const uint16_t potq_byte_tokens[256];
extern const uint16_t potq_prefix[];
extern const uint16_t potq_ends[];

int potq_is_end(unsigned token);

#endif
