// What a file in isa/ offers; dispatch.cpp chooses.
#pragma once

#include "../potq.h"

namespace potq {

struct Kernels {
  int panel_rows[2];                               // by potq_arithmetic
  int (*narrow_steps)(const potq_format& format);  // of 4 columns, whose sums have a start (0: whole blocks have)
  void (*prepare)(const potq_product& product, int64_t first, int rows, uint8_t* panel);
  void (*multiply)(const potq_product& product, const uint8_t* panels, int64_t first, int rows, int first_block,
                   int last_block);
};

extern const Kernels kScalar, kAvx2, kAvxVnni, kAvxVnniEvex, kAvx512Vnni, kNeon, kNeonDot, kNeonI8mm;

}  // namespace potq
