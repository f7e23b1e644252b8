// AVX-VNNI: vpdpbusd on the vectors of AVX2, and 128 on top of the levels as in avx512vnni.cpp. The instruction has two
// encodings, which few CPUs have both: avxvnni.cpp makes the kernels with one, avxvnni_evex.cpp with the other.
#pragma once

#include "avx2.h"

namespace potq {
namespace {

template <class Dot>
struct AvxVnni : Avx2 {
  static constexpr int kPanelRows = 6;  // 12 sums, 2 vectors of levels and one of activations: 15 of 16 registers
  static constexpr bool kOneRowApart = false;
  static int offset(const potq_format&) { return 128; }
  static int narrow_steps(const potq_format&) { return kNarrowSteps; }
  static POTQ_INLINE Ints dot(Ints sum, Bytes level, Bytes x) { return kept(Dot::dot(sum, level, x)); }
};

// Products of floats are those of AVX2.
template <class V>
void multiply_avxvnni(const potq_product& product, const uint8_t* prepared, int64_t first, int rows, int first_block,
                      int last_block) {
  const auto chosen = product.arithmetic == POTQ_FLOAT ? kAvx2.multiply : multiply_with<V, Integer, V::kPanelRows>;
  chosen(product, prepared, first, rows, first_block, last_block);
}

template <class Dot>
constexpr Kernels avxvnni_kernels() {
  using V = AvxVnni<Dot>;
  return {{V::kPanelRows, V::kFloatPanelRows}, V::narrow_steps, prepare_panel<V>, multiply_avxvnni<V>};
}

}  // namespace
}  // namespace potq
