/* What a board gives a program: characters out, an end, and a clock for measurements. */
#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

void board_start(void);
void board_put(char character);
void board_stop(void);
uint32_t board_clock(void); /* cycles where an emulator has them, else instructions */

#endif
