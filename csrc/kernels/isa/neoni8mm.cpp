// NEON with smmla (Armv8.6 i8mm). It multiplies two rows by two, of 8 columns each: four sums, where sdot makes four of half as
// many columns. So levels are kept by pairs of rows. The last of an odd number of activation rows takes sdot.
#include "neondot.h"

namespace potq {
namespace {

struct NeonI8mm : Neon<DotProduct> {
  static constexpr bool kDecodesFirst = true, kPairsRows = true, kOneRowApart = false;

  // Columns 0 to 3 and 4 to 7 of four rows become 8 columns of the first two rows and of the others.
  static POTQ_INLINE void pair(Bytes* levels) {
    const uint32x4_t left = vreinterpretq_u32_u8(levels[0]), right = vreinterpretq_u32_u8(levels[1]);
    levels[0] = vreinterpretq_u8_u32(vzip1q_u32(left, right));
    levels[1] = vreinterpretq_u8_u32(vzip2q_u32(left, right));
  }

  // 4 columns of two activation rows, or of one row twice
  template <bool kTwo>
  static POTQ_INLINE int32x4_t rows(const int8_t* x) {
    return vreinterpretq_s32_s8(kTwo ? vcombine_s8(vld1_s8(x), vdup_n_s8(0)) : four(x));
  }

  // Adds four rows of levels times the activations of two rows, or of one.
  template <bool kTwo>
  static POTQ_INLINE void multiply(const Bytes* levels, const int8_t* left, const int8_t* right, Ints* sums) {
    const int8x16_t x = vreinterpretq_s8_s32(vzip1q_s32(rows<kTwo>(left), rows<kTwo>(right)));
    for (int i = 0; i < 2; i++) {
      const int8x16_t level = vreinterpretq_s8_u8(levels[i]);
      sums[i] = kTwo ? vmmlaq_s32(sums[i], level, x) : vdotq_s32(sums[i], level, x);
    }
  }

  // What Integer::dot_wide does.
  template <int Bits, int M, int R>
  static POTQ_INLINE void dot_pairs(const Decoder<NeonI8mm, Bits>& decoder, const Codes& codes, const uint8_t* panel,
                                    Ints (*result)[M]) {
    const int8_t* values = reinterpret_cast<const int8_t*>(panel) + 8 * M;
    Ints sums[R][(M + 1) / 2][2];
    for (auto& row : sums)
      for (auto& pair : row) pair[0] = pair[1] = zero();
    for (int u = 0; u < codes.units; u++) {
      POTQ_UNROLL
      for (int half = 0; half < 2; half++, values += 8 * M) {
        POTQ_UNROLL
        for (int r = 0; r < R; r++) {
          Bytes levels[2];
          codes.decode<NeonI8mm, Bits>(decoder, r, u, half, levels);
          if (Bits != kDecoded) pair(levels);
          POTQ_UNROLL
          for (int i = 0; i + 1 < M; i += 2) multiply<true>(levels, values + 4 * i, values + 4 * (M + i), sums[r][i / 2]);
          if (M % 2) multiply<false>(levels, values + 4 * (M - 1), values + 4 * (2 * M - 1), sums[r][M / 2]);
        }
      }
    }
    for (int r = 0; r < R; r++) separate<M>(sums[r], result[r]);
  }

  // Sums by pairs to sums by activation row.
  template <int M>
  static POTQ_INLINE void separate(const Ints (*sums)[2], Ints* result) {
    POTQ_UNROLL
    for (int i = 0; i + 1 < M; i += 2) {
      result[i] = vuzp1q_s32(sums[i / 2][0], sums[i / 2][1]);
      result[i + 1] = vuzp2q_s32(sums[i / 2][0], sums[i / 2][1]);
    }
    if (M % 2) result[M - 1] = vpaddq_s32(sums[M / 2][0], sums[M / 2][1]);
  }
};

// Products of floats and of one row are those of sdot.
void multiply_i8mm(const potq_product& product, const uint8_t* prepared, int64_t first, int rows, int first_block,
                   int last_block) {
  const bool alone = product.arithmetic == POTQ_FLOAT || rows == 1;
  const auto chosen = alone ? kNeonDot.multiply : multiply_with<NeonI8mm, Integer, NeonI8mm::kPanelRows>;
  chosen(product, prepared, first, rows, first_block, last_block);
}

}  // namespace

const Kernels kNeonI8mm = {
    {NeonI8mm::kPanelRows, NeonI8mm::kFloatPanelRows}, NeonI8mm::narrow_steps, prepare_panel<NeonI8mm>, multiply_i8mm};

}  // namespace potq
