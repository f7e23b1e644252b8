#include "model.h"

#include <stddef.h>

#include "arithmetic.h"
#include "layers.h"
#include "weights.h"

static int32_t hidden[POTQ_HIDDEN], last[POTQ_HIDDEN];
static int32_t logits[POTQ_VOCABULARY];
static uint16_t prompt_tokens[POTQ_CONTEXT];
static unsigned position;

void potq_reset(void) { position = 0; }

/* Read a token; 0 if there is no room for it, or no such token. */
static int read_token(unsigned token) {
  unsigned layer;
  if (position >= POTQ_CONTEXT || token >= potq_embedding.rows) return 0;
  potq_row(&potq_embedding, token, hidden);
#if !POTQ_ROTARY
  {
    unsigned i;
    potq_row(&potq_positions, position, last);
    for (i = 0; i < POTQ_HIDDEN; i++) hidden[i] = potq_saturated((int64_t)hidden[i] + last[i]);
  }
#endif
  for (layer = 0; layer < POTQ_LAYERS; layer++) potq_run_block(&potq_blocks[layer], layer, position, hidden);
  position++;
  return 1;
}

const int32_t* potq_forward(unsigned token) {
  if (!read_token(token)) return NULL;
  potq_normalize(&potq_last_norm, hidden, last);
  potq_load(&potq_head, last, NULL);
  potq_multiply(&potq_head, logits);
  return logits;
}

unsigned potq_likeliest(const int32_t* numbers) {
  unsigned best = 0;
  unsigned i;
  for (i = 1; i < POTQ_VOCABULARY; i++) {
    if (numbers[i] > numbers[best]) best = i;
  }
  return best;
}

int potq_generate(const char* prompt, unsigned count, potq_callback callback, void* context) {
  int length = potq_encode(prompt, prompt_tokens, POTQ_CONTEXT);
  const int32_t* found = NULL;
  unsigned done = 0;
  int i;
  if (length < 0) return length;
  potq_reset();
  for (i = 0; i + 1 < length; i++) read_token(prompt_tokens[i]);
  if (length > 0) found = potq_forward(prompt_tokens[i]);
  while (found != NULL && done < count) {
    unsigned token = potq_likeliest(found);
    unsigned size;
    const char* bytes = potq_token_bytes(token, &size);
    done++;
    if (callback(context, token, bytes, size) || potq_is_end(token) || done == count) break;
    found = potq_forward(token);
  }
  return (int)done;
}
