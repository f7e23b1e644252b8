// What a file in isa/ offers; dispatch.cpp chooses.
#pragma once

#include "../potq.h"

namespace potq {

struct Kernels {
  int panel_rows[2];  // by potq_arithmetic
  void (*prepare)(const potq_product& product, int64_t first, int rows, uint8_t* panel);
  void (*multiply)(const potq_product& product, const uint8_t* panels, int64_t first, int rows, int first_block,
                   int last_block);
};

extern const Kernels kScalar, kAvx2, kAvxVnni, kAvxVnniEvex, kAvx512Vnni, kNeon, kNeonDot, kNeonI8mm;

}  // namespace potq
