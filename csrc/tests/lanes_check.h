// The engine's float arithmetic (csrc/engine/lanes.h) on every instruction set that can be used here, against double precision:
// attention (score, softmax, mix) with sizes and groups of heads that fill no vector and no tile, and products with float
// weights. Prints a hash of all bits, which is the same on every machine. False: something was wrong, and said on stderr.
#pragma once

bool check_attention();
bool check_products();
