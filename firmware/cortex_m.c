/* MPS2 boards of Arm, as QEMU emulates them: mps2-an385 (Cortex-M3) and mps2-an386 (Cortex-M4). */
#include <stdint.h>

#include "board.h"

#define UART ((volatile uint32_t*)0x40004000) /* CMSDK: data, state, control, -, divider */

#define SYSTICK ((volatile uint32_t*)0xE000E010) /* control, first value, value */

extern uint32_t stack_top, bss_start, bss_end;
int main(void);

void board_start(void) {
  SYSTICK[1] = 0xffffff;
  SYSTICK[2] = 0;
  SYSTICK[0] = 5;           /* counts down at 25 MHz */
  while (SYSTICK[2] == 0) { /* until the first tick loads it */
  }
  UART[4] = 16;
  UART[2] = 1;
}

void board_put(char character) {
  while (UART[1] & 1) {
  }
  UART[0] = (unsigned char)character;
}

/* With QEMU's -icount shift=0 an instruction takes a nanosecond, so that a tick is 40 of them; 671 million at most. */
uint32_t board_clock(void) { return (0xffffff - SYSTICK[2]) * 40; }

void board_stop(void) { /* semihosting: the application ends */
  register uint32_t operation __asm__("r0") = 0x18;
  register uint32_t reason __asm__("r1") = 0x20026;
  __asm__ volatile("bkpt 0xab" ::"r"(operation), "r"(reason) : "memory");
  for (;;) {
  }
}

static void reset(void) {
  uint32_t* word;
  for (word = &bss_start; word < &bss_end; word++) *word = 0;
  main();
}

__attribute__((section(".vectors"), used)) static const void* const vectors[] = {&stack_top, (const void*)reset};
