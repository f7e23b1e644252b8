/* Cycles of the first token, and a checksum of its logits, in hexadecimal. */
#include "board.h"
#include "model.h"

static void put_number(uint32_t number) {
  int shift;
  for (shift = 28; shift >= 0; shift -= 4) board_put("0123456789abcdef"[(number >> shift) & 15]);
  board_put(' ');
}

int main(void) {
  uint32_t sum = 0;
  uint32_t began, done;
  const int32_t* logits;
  unsigned i;
  board_start();
  began = board_clock();
  logits = potq_forward(1);
  done = board_clock();
  for (i = 0; i < POTQ_VOCABULARY; i++) sum = sum * 31 + (uint32_t)logits[i];
  put_number(done - began);
  put_number(sum);
  board_stop();
  return 0;
}
