/* What a board gives a program: characters out, and an end. */
#ifndef BOARD_H
#define BOARD_H

void board_start(void);
void board_put(char character);
void board_stop(void);

#endif
