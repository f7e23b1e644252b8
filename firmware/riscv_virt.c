/* QEMU's board "virt" for RISC-V. */
#include <stdint.h>

#include "board.h"

#define UART ((volatile uint8_t*)0x10000000) /* 16550: data, ..., 5: line status */
#define FINISHER ((volatile uint32_t*)0x00100000)

void board_start(void) {}

void board_put(char character) {
  while (!(UART[5] & 0x20)) {
  }
  UART[0] = (uint8_t)character;
}

uint32_t board_clock(void) {
  uint32_t count;
  __asm__ volatile("rdinstret %0" : "=r"(count));
  return count;
}

void board_stop(void) {
  *FINISHER = 0x5555;
  for (;;) {
  }
}
