// The two arithmetics: what is done with one block of columns, R strips of rows and M activation rows.
#pragma once

#include "decode.h"

namespace potq {
namespace {

template <class V, int Bits, int R, int M>
void fine_sums(int rows, const Decoder<V, Bits>& decoder, const Codes& codes, const uint8_t* fine, int32_t* factors,
               typename V::Ints (*sums)[R]);

template <class V, int Bits, int M, int R>
struct Integer {
  // one accumulator would wait for itself; with few of them, the 4 steps of a unit get their own (integers add up in any order)
  static constexpr int kChains = R * M == 1 ? 4 : R * M <= 4 ? 2 : 1;

  // sum of level * value, for each strip and activation row
  static POTQ_INLINE void dot(const Decoder<V, Bits>& decoder, const Codes& codes, const uint8_t* panel,
                              typename V::Ints (*result)[M]) {
    if constexpr (V::kPairsRows)
      V::template dot_pairs<Bits, M, R>(decoder, codes, panel, result);
    else if constexpr (V::kNarrowSteps > 0)
      dot_narrow(decoder, codes, panel, result);
    else
      dot_wide(decoder, codes, panel, result);
  }

  // Not inline: decoding once for a block's two sums is more than 16 registers can keep.
  static POTQ_APART void dot_apart(const Decoder<V, Bits>& decoder, const Codes& codes, const uint8_t* panel,
                                   typename V::Ints (*result)[M]) {
    dot(decoder, codes, panel, result);
  }

  static POTQ_INLINE void dot_wide(const Decoder<V, Bits>& decoder, const Codes& codes, const uint8_t* panel,
                                   typename V::Ints (*result)[M]) {
    const int32_t* starts = reinterpret_cast<const int32_t*>(panel) + M;
    const int8_t* values = reinterpret_cast<const int8_t*>(panel) + 8 * M;
    typename V::Ints total[kChains][R][M];
    POTQ_UNROLL
    for (int i = 0; i < M; i++) {
      POTQ_UNROLL
      for (int r = 0; r < R; r++) {
        total[0][r][i] = V::start(starts + i);
        POTQ_UNROLL
        for (int c = 1; c < kChains; c++) total[c][r][i] = V::zero();
      }
    }
    POTQ_UNROLL_UNITS
    for (int u = 0; u < codes.units; u++) {
      POTQ_UNROLL
      for (int half = 0; half < 2; half++, values += 8 * M) {
        typename V::Bytes levels[R][2];
        POTQ_UNROLL
        for (int r = 0; r < R; r++) codes.decode<V, Bits>(decoder, r, u, half, levels[r]);
        POTQ_UNROLL
        for (int s = 0; s < 2; s++) {
          const int chain = (2 * half + s) % kChains;
          POTQ_UNROLL
          for (int i = 0; i < M; i++) {
            const auto four = V::four(values + 4 * (s * M + i));
            POTQ_UNROLL
            for (int r = 0; r < R; r++) total[chain][r][i] = V::dot(total[chain][r][i], levels[r][s], four);
          }
        }
      }
    }
    POTQ_UNROLL
    for (int r = 0; r < R; r++) {
      POTQ_UNROLL
      for (int i = 0; i < M; i++) {
        result[r][i] = total[0][r][i];
        POTQ_UNROLL
        for (int c = 1; c < kChains; c++) result[r][i] = V::add(result[r][i], total[c][r][i]);
      }
    }
  }

  // The same where a few steps of 4 columns fit 16 bits: their sums are made twice as wide once for all of them. They begin at
  // what the offset of the levels will add, with the other sign, and may wrap around on the way: what remains fits.
  static POTQ_INLINE void dot_narrow(const Decoder<V, Bits>& decoder, const Codes& codes, const uint8_t* panel,
                                     typename V::Ints (*total)[M]) {
    const int32_t* starts = reinterpret_cast<const int32_t*>(panel) + M;
    const int8_t* values = reinterpret_cast<const int8_t*>(starts + M * starts_of(codes.units, V::kNarrowSteps));
    constexpr bool kHalves = V::kNarrowSteps == 2;                             // half a unit has a start
    constexpr int kUnits = kHalves ? kMaxBlock / kUnit : V::kNarrowSteps / 4;  // so many units do
    static_assert(kHalves || (kUnits > 0 && V::kNarrowSteps % 4 == 0), "the steps of half a unit, or of some units");
    typename V::Ints narrow[R][M];
    POTQ_UNROLL
    for (int i = 0; i < R * M; i++) total[i / M][i % M] = V::zero();
    for (int first = 0, last = 0; first < codes.units; first = last) {
      last = kUnits == kMaxBlock / kUnit ? codes.units : smaller(first + kUnits, codes.units);
      for (int i = 0; !kHalves && i < M; i++) begin(starts[i], i, narrow);
      POTQ_UNROLL_UNITS
      for (int u = first; u < last; u++) {
        POTQ_UNROLL
        for (int half = 0; half < 2; half++, values += 8 * M) {
          typename V::Bytes levels[R][2];
          POTQ_UNROLL
          for (int r = 0; r < R; r++) codes.decode<V, Bits>(decoder, r, u, half, levels[r]);
          POTQ_UNROLL
          for (int i = 0; i < M; i++) {
            if (kHalves) begin(starts[i], i, narrow);
            POTQ_UNROLL
            for (int s = 0; s < 2; s++) {
              const auto four = V::four(values + 4 * (s * M + i));
              POTQ_UNROLL
              for (int r = 0; r < R; r++) narrow[r][i] = V::add_narrow(narrow[r][i], V::dot_narrow(levels[r][s], four));
            }
            if (kHalves) widen(i, narrow, total);
          }
          if (kHalves) starts += M;
        }
      }
      for (int i = 0; !kHalves && i < M; i++) widen(i, narrow, total);
      if (!kHalves) starts += M;
    }
  }

  static POTQ_INLINE void begin(const int32_t& start, int i, typename V::Ints (*narrow)[M]) {
    POTQ_UNROLL
    for (int r = 0; r < R; r++) narrow[r][i] = V::start(&start);
  }

  static POTQ_INLINE void widen(int i, const typename V::Ints (*narrow)[M], typename V::Ints (*total)[M]) {
    POTQ_UNROLL
    for (int r = 0; r < R; r++) total[r][i] = V::add_wide(total[r][i], narrow[r][i]);
  }

  // `fine`: the second int8 of `fine_rows` of the rows
  static POTQ_INLINE void block(const Decoder<V, Bits>& decoder, const Codes& codes, const uint8_t* panel, const uint8_t* fine,
                                int fine_rows, const typename V::Floats* weight_scale, typename V::Floats (*y)[M]) {
    typename V::Ints sum[R][M];
    dot(decoder, codes, panel, sum);
    if (fine_rows) add_fine(decoder, codes, fine, fine_rows, sum);
    const float* scales = reinterpret_cast<const float*>(panel);
    POTQ_UNROLL
    for (int r = 0; r < R; r++) {
      POTQ_UNROLL
      for (int i = 0; i < M; i++)
        y[r][i] = V::fma(V::floats(sum[r][i]), V::mul(weight_scale[r], V::broadcast(scales + i)), y[r][i]);
    }
  }

  static POTQ_INLINE void add_fine(const Decoder<V, Bits>& decoder, const Codes& codes, const uint8_t* fine, int fine_rows,
                                   typename V::Ints (*sum)[M]) {
    if constexpr (M == 1) {
      typename V::Ints more[R][1];
      if constexpr (V::kOneRowApart)
        dot_apart(decoder, codes, fine, more);
      else
        dot(decoder, codes, fine, more);
      POTQ_UNROLL
      for (int r = 0; r < R; r++) sum[r][0] = V::add(V::times(sum[r][0], kFineSteps), more[r][0]);
    } else {
      int32_t factors[M];
      typename V::Ints more[M][R];
      for (int i = 0; i < M; i++) factors[i] = 1;
      for (int i = 0; i < M * R; i++) more[i / R][i % R] = V::zero();
      fine_sums<V, Bits, R, M>(fine_rows, decoder, codes, fine, factors, more);
      POTQ_UNROLL
      for (int i = 0; i < M; i++) {
        POTQ_UNROLL
        for (int r = 0; r < R; r++) sum[r][i] = V::add(V::times(sum[r][i], factors[i]), more[i][r]);
      }
    }
  }
};

template <class V, int Bits, int M, int R>
struct Float {
  static POTQ_INLINE void block(const Decoder<V, Bits>& decoder, const Codes& codes, const uint8_t* panel, const uint8_t*, int,
                                const typename V::Floats* weight_scale, typename V::Floats (*y)[M]) {
    for (int r = 0; r < R; r++) strip(decoder, codes, r, panel, weight_scale[r], y[r]);
  }

  static POTQ_INLINE void strip(const Decoder<V, Bits>& decoder, const Codes& codes, int r, const uint8_t* panel,
                                typename V::Floats weight_scale, typename V::Floats* y) {
    const float* values = reinterpret_cast<const float*>(panel);
    typename V::Floats total[4][M];
    POTQ_UNROLL
    for (int i = 0; i < 4 * M; i++) total[i / M][i % M] = V::zero_floats();
    for (int u = 0; u < codes.units; u++) {
      POTQ_UNROLL
      for (int half = 0; half < 2; half++, values += 8 * M) {
        typename V::Bytes levels[2];
        codes.decode<V, Bits>(decoder, r, u, half, levels);
        POTQ_UNROLL
        for (int k = 0; k < 8; k++) {
          const typename V::Floats level = V::column(levels[k / 4], k % 4);
          POTQ_UNROLL
          for (int i = 0; i < M; i++)
            total[k % 4][i] = V::fma(level, V::broadcast(values + 4 * (k / 4 * M + i) + k % 4), total[k % 4][i]);
        }
      }
    }
    POTQ_UNROLL
    for (int i = 0; i < M; i++) {
      const typename V::Floats sum = V::add(V::add(total[0][i], total[1][i]), V::add(total[2][i], total[3][i]));
      y[i] = V::fma(sum, weight_scale, y[i]);
    }
  }
};

// Integer::dot of the rows that hold outliers, how many is known only now: sets their factors and sums, by their number in the
// panel.
template <class V, int Bits, int R, int M>
void fine_sums(int rows, const Decoder<V, Bits>& decoder, const Codes& codes, const uint8_t* fine, int32_t* factors,
               typename V::Ints (*sums)[R]) {
  if constexpr (M > 1) {
    if (rows < M) return fine_sums<V, Bits, R, M - 1>(rows, decoder, codes, fine, factors, sums);
  }
  const int32_t* numbers = reinterpret_cast<const int32_t*>(fine);
  typename V::Ints found[R][M];
  Integer<V, Bits, M, R>::dot(decoder, codes, fine, found);
  POTQ_UNROLL
  for (int i = 0; i < M; i++) {
    factors[numbers[i]] = kFineSteps;
    POTQ_UNROLL
    for (int r = 0; r < R; r++) sums[numbers[i]][r] = found[r][i];
  }
}

}  // namespace
}  // namespace potq
