// Attention's functions (Lanes::score, softmax and mix) on every instruction set that can be used here, against double
// precision: sizes and groups of heads that fill no vector and no tile, every count of positions. Prints a hash of all bits,
// which is the same on every machine. False: something was wrong, and said on stderr.
#pragma once

bool check_attention();
