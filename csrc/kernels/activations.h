// Rows of activations to panels: rounded to int8 or as they are, rows interleaved.
#pragma once

#include "basics.h"

namespace potq {
namespace {

constexpr int kMaxPanelRows = 6;
// A block is rounded finely if the mean square of its integers is below this: then its largest value is more than
// sqrt(127^2 / kOutlier) = 5 times its root mean square, and plain int8 would lose the small ones.
constexpr int kOutlier = 645;

// Columns [start, start + block) of a row as float32; beyond the last column, zero.
inline void load_block(const potq_product& product, int64_t row, int start, int block, float* values) {
  const int count = smaller(block, product.format->columns - start);
  const int64_t first = row * product.format->columns + start;
  if (product.dtype == POTQ_FLOAT32) {
    std::memcpy(values, static_cast<const float*>(product.x) + first, size_t(count) * 4);
  } else {
    const uint16_t* x = static_cast<const uint16_t*>(product.x) + first;
    for (int k = 0; k < count; k++) values[k] = from_bfloat16(x[k]);
  }
  for (int k = count; k < block; k++) values[k] = 0;
}

// A block of one row, rounded.
struct Rounded {
  int8_t coarse[kMaxBlock], fine[kMaxBlock];
  int32_t coarse_sum, fine_sum;
  float scale;
};

// The largest magnitude, compared as integers: the same order, and NaN comes last instead of being lost.
inline uint32_t largest_magnitude(const float* values, int block) {
  uint32_t largest = 0;
  for (int k = 0; k < block; k++) {
    const uint32_t magnitude = bits_of(values[k]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

// Adding 1.5 * 2^23 leaves no bits for a fraction: rint, vectorized everywhere.
inline float rint_small(float value) { return (value + 12582912.0f) - 12582912.0f; }

// What rounding to whole steps left over, in steps / kFineSteps.
inline void round_fine(const float* values, int block, float inverse, Rounded* result) {
  int32_t sum = 0;
  for (int k = 0; k < block; k++) {
    const float steps = values[k] * inverse;
    const int32_t integer = int32_t(rint_small((steps - rint_small(steps)) * float(kFineSteps)));
    result->fine[k] = int8_t(integer);
    sum += integer;
  }
  result->fine_sum = sum;
}

// Returns whether the block is finely rounded.
inline bool round_block(const float* values, int block, float reference, Rounded* result) {
  const uint32_t largest = largest_magnitude(values, block);
  const float amax = float_of(largest);
  *result = Rounded{};
  result->scale = largest < 0x7f800000 ? 0.0f : float_of(0x7fc00000);
  if (largest >= 0x7f800000 || amax < 0x1p-120f) return false;
  const float inverse = 127.0f / amax;
  int32_t sum = 0, squares = 0;
  for (int k = 0; k < block; k++) {
    const int32_t integer = int32_t(rint_small(values[k] * inverse));
    result->coarse[k] = int8_t(integer);
    sum += integer;
    squares += integer * integer;
  }
  result->coarse_sum = sum;
  const bool outlier = squares < kOutlier * block;
  if (outlier) {
    round_fine(values, block, inverse, result);
  }
  result->scale = amax * (outlier ? 1.0f / 32258.0f : 1.0f / 127.0f) * reference;
  return outlier;
}

// Lay the 4-column steps of one row between those of the others.
inline void interleave(const void* from, size_t step, int steps, int row, int rows, uint8_t* to) {
  for (int k = 0; k < steps; k++)
    std::memcpy(to + size_t(k * rows + row) * step, static_cast<const uint8_t*>(from) + size_t(k) * step, step);
}

inline void prepare_float(const potq_product& product, const Layout& layout, int64_t first, int rows, uint8_t* panel) {
  const Panel shape(layout, POTQ_FLOAT, rows, 0);
  float values[kMaxBlock];
  for (int b = 0; b < layout.blocks; b++) {
    for (int row = 0; row < rows; row++) {
      load_block(product, first + row, b * layout.block, layout.block, values);
      interleave(values, 16, layout.block / 4, row, rows, panel + size_t(b) * shape.block_bytes);
    }
  }
}

// Room in a panel for one block of `rows` rows: a number of each, the starts of their sums, their values.
struct BlockWriter {
  uint8_t* to;
  int rows, offset, steps, narrow_steps;

  void write(int row, const void* number, const int8_t* values, int32_t sum) const {
    std::memcpy(to + size_t(row) * 4, number, 4);
    int32_t starts[kMaxBlock / 4] = {-offset * sum};
    const int count = starts_of(steps * 4 / kUnit, narrow_steps);
    if (narrow_steps) narrow_starts(values, count, starts);
    interleave(starts, 4, count, row, rows, to + size_t(rows) * 4);
    interleave(values, 4, steps, row, rows, to + size_t(rows) * size_t(4 * (1 + count)));
  }

  // Each holds two int16: -offset times the sum of the columns 0 and 1 of its steps, and of 2 and 3.
  void narrow_starts(const int8_t* values, int count, int32_t* starts) const {
    for (int s = 0; s < count; s++) {
      int32_t sums[2] = {};
      for (int k = s * narrow_steps; k < smaller((s + 1) * narrow_steps, steps); k++) {
        sums[0] += values[4 * k] + values[4 * k + 1];
        sums[1] += values[4 * k + 2] + values[4 * k + 3];
      }
      starts[s] = int32_t(uint32_t(uint16_t(-offset * sums[0])) | uint32_t(-offset * sums[1]) << 16);
    }
  }
};

template <class V>
inline void prepare_int8(const potq_product& product, const Layout& layout, int64_t first, int rows, uint8_t* panel) {
  const int narrow_steps = V::narrow_steps(*product.format);
  const Panel shape(layout, POTQ_INT8, rows, narrow_steps);
  const float reference = float_of(uint32_t(127 - product.format->reference_log2) << 23);
  const int steps = layout.block / 4, offset = V::offset(*product.format);
  float values[kMaxBlock];
  Rounded rounded[kMaxPanelRows];
  for (int b = 0; b < layout.blocks; b++) {
    int32_t fine_rows[kMaxPanelRows], fine = 0;
    const BlockWriter coarse{panel + shape.blocks + size_t(b) * shape.block_bytes, rows, offset, steps, narrow_steps};
    for (int row = 0; row < rows; row++) {
      load_block(product, first + row, b * layout.block, layout.block, values);
      if (round_block(values, layout.block, reference, &rounded[row])) fine_rows[fine++] = row;
      coarse.write(row, &rounded[row].scale, rounded[row].coarse, rounded[row].coarse_sum);
    }
    panel[b] = uint8_t(fine);
    const BlockWriter second{panel + shape.fine + size_t(b) * shape.block_bytes, fine, offset, steps, narrow_steps};
    for (int i = 0; i < fine; i++) second.write(i, &fine_rows[i], rounded[fine_rows[i]].fine, rounded[fine_rows[i]].fine_sum);
  }
}

template <class V>
void prepare_panel(const potq_product& product, int64_t first, int rows, uint8_t* panel) {
  const Layout layout(*product.format);
  if (product.arithmetic == POTQ_INT8)
    prepare_int8<V>(product, layout, first, rows, panel);
  else
    prepare_float(product, layout, first, rows, panel);
}

}  // namespace
}  // namespace potq
