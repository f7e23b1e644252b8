/* A language model in integers. No heap, no floating point, nothing of the C library.

   One model, one text at a time: all state is static. */
#ifndef POTQ_MODEL_H
#define POTQ_MODEL_H

#include <stdint.h>

#include "config.h" /* POTQ_VOCABULARY, POTQ_CONTEXT, ... */

/* Forget the text. */
void potq_reset(void);

/* Read the next token. Returns the logits of what follows, with 16 bits behind the point, or NULL: the text fills the
   context, or the vocabulary has no such token. */
const int32_t* potq_forward(unsigned token);

/* The likeliest token. */
unsigned potq_likeliest(const int32_t* logits);

/* A piece of the text: a token and its bytes, of which there may be none. Anything but 0 stops. */
typedef int (*potq_callback)(void* context, unsigned token, const char* bytes, unsigned length);

/* Tokens of a text that ends with a zero byte, those that begin every text included. Returns how many, or -1: they are more
   than `most`, or the text is far longer than the context; or -2: the text has bytes that this tokenizer does not cut (see
   tokenizer.c). */
int potq_encode(const char* text, uint16_t* tokens, unsigned most);

/* The bytes of a token. */
const char* potq_token_bytes(unsigned token, unsigned* length);

/* Continue `prompt` by the likeliest token, again and again, at most `count` times. Returns the number of tokens, or what
   potq_encode returns below 0. */
int potq_generate(const char* prompt, unsigned count, potq_callback callback, void* context);

#endif
