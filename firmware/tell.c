/* Tells a story over the UART, then the tokens of it. */
#include "board.h"
#include "model.h"

#ifndef PROMPT
#define PROMPT "Once upon a time"
#endif
#ifndef TOKENS
#define TOKENS 60
#endif

static uint16_t told[TOKENS];
static unsigned count;

static void put_number(unsigned number) {
  if (number > 9) put_number(number / 10);
  board_put((char)('0' + number % 10));
}

static void put_text(const char* text) {
  while (*text) board_put(*text++);
}

static int print(void* context, unsigned token, const char* bytes, unsigned length) {
  (void)context;
  told[count++] = (uint16_t)token;
  while (length--) board_put(*bytes++);
  return 0;
}

int main(void) {
  int done;
  int i;
  board_start();
  put_text(PROMPT);
  done = potq_generate(PROMPT, TOKENS, print, 0);
  put_text("\ntokens:");
  for (i = 0; i < done; i++) {
    board_put(' ');
    put_number(told[i]);
  }
  put_text("\n");
  board_stop();
  return 0;
}
