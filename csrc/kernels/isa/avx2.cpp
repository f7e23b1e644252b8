// AVX2 (Haswell, Zen and later). vpmaddubsw multiplies unsigned by signed bytes and adds pairs in 16 bits, where it saturates.
// How that is kept from happening depends on the largest magnitude of a level, L:
//
//   L <= 64   the unsigned operand is level + L, at most 2 L; a pair is within 2 * 2 L * 127 = 508 L. Pairs are added in 16
//             bits, which may wrap around: what the offset has added is taken out again in the same bits, and the sum of the
//             levels' own products fits if 254 L times the number of pairs does: 16 for L <= 8, 8 for L <= 16, else 2. Then
//             vpmaddwd makes sums twice as wide.
//   more      the unsigned operand is |level| <= 128 and the activation takes the level's sign: 2 * 128 * 127 = 32512
#define POTQ_ROLLED_UNITS  // a unit is 4 steps of up to 12 products: code enough
#include "avx2.h"

namespace potq {
namespace {

constexpr int kLargestShifted = 64;

// Steps of 4 columns whose sums fit 16 bits; 0: not two.
constexpr int steps_that_fit(int largest) { return largest <= 8 ? 16 : largest <= 16 ? 8 : largest <= kLargestShifted ? 2 : 0; }

struct Avx2Signed : Avx2 {
  static int offset(const potq_format& format) {
    const int largest = largest_level(format);
    return largest <= kLargestShifted ? largest : 0;
  }
  static int narrow_steps(const potq_format& format) { return steps_that_fit(largest_level(format)); }
  static POTQ_INLINE Ints dot(Ints sum, Bytes level, Bytes x) {
    return kept(add(sum, widen(_mm256_maddubs_epi16(_mm256_abs_epi8(level), _mm256_sign_epi8(x, level)))));
  }
  static POTQ_INLINE Ints widen(Ints pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
};

template <int kSteps>
struct Avx2Shifted : Avx2Signed {
  static constexpr int kNarrowSteps = kSteps;
  static POTQ_INLINE Ints dot_narrow(Bytes level, Bytes x) { return _mm256_maddubs_epi16(level, x); }
  static POTQ_INLINE Ints add_wide(Ints sum, Ints narrow) { return kept(add(sum, widen(narrow))); }
  static POTQ_INLINE Ints add_narrow(Ints a, Ints b) { return kept(_mm256_add_epi16(a, b)); }
};

template <class V>
void multiply_int8(const potq_product& product, const uint8_t* prepared, int64_t first, int rows, int first_block,
                   int last_block) {
  multiply_with<V, Integer, V::kPanelRows>(product, prepared, first, rows, first_block, last_block);
}

void multiply_avx2(const potq_product& product, const uint8_t* prepared, int64_t first, int rows, int first_block,
                   int last_block) {
  const int steps = Avx2Signed::narrow_steps(*product.format);
  const auto chosen = product.arithmetic == POTQ_FLOAT ? multiply_with<Avx2Signed, Float, Avx2::kFloatPanelRows>
                      : steps == 16                    ? multiply_int8<Avx2Shifted<16>>
                      : steps == 8                     ? multiply_int8<Avx2Shifted<8>>
                      : steps == 2                     ? multiply_int8<Avx2Shifted<2>>
                                                       : multiply_int8<Avx2Signed>;
  chosen(product, prepared, first, rows, first_block, last_block);
}

}  // namespace

const Kernels kAvx2 = {
    {Avx2::kPanelRows, Avx2::kFloatPanelRows}, Avx2Signed::narrow_steps, prepare_panel<Avx2Signed>, multiply_avx2};

}  // namespace potq
