// The product, once for every instruction set; a file in isa/ supplies the vectors V.
//
// INT8: activations of a row are cut in blocks of at most 64 columns and rounded, q = rint(x 127/amax), scale amax/127. With
// integer levels L and weight scale w the output is, over blocks b ascending,
//     y = fmaf(float(sum_k L[k] q[k]), w * scale[b], y),     y starting at the bias.
// A block with an outlier (kOutlier) takes a second int8: 254 q + r in place of q, r = rint(254 (x 127/amax - q)), and the
// scale amax/32258. The sum is taken in int32 (exact in any order), the product w * scale rounded once. FLOAT: four partial
// sums of fmaf(L[k], x[k], s), column k in sum k mod 4, added (s0 + s1) + (s2 + s3), then the same with w / 2^reference_log2
// for w * scale. That order is the contract: every instruction set and every number of threads gives the same bits.
//
// Codes are decoded in registers, by byte shuffles that look up a 16-entry table of levels (the same work for every grid), and
// used at once for up to V::kPanelRows activation rows. Rejected: decoding into a buffer that all rows share; a shuffle costs
// less than the load it saves.
#pragma once

#include <type_traits>

#include "layout.h"
#include "numbers.h"
#include "table.h"

#if defined(__GNUC__)
#define POTQ_INLINE inline __attribute__((always_inline))
#define POTQ_UNROLL _Pragma("GCC unroll 16")
#else
#define POTQ_INLINE inline
#define POTQ_UNROLL
#endif

namespace potq {
namespace {

constexpr int kPrefetch = 4096;  // bytes ahead: the hardware stops at the end of a page
constexpr int kMaxPanelRows = 12;
// A block is rounded finely if the mean square of its integers is below this: then its largest value is more than
// sqrt(127^2 / kOutlier) = 5 times its root mean square, and plain int8 would lose the small ones.
constexpr int kOutlier = 645;

inline int smaller(int a, int b) { return a < b ? a : b; }

inline float load_number(const void* numbers, int64_t index, int dtype) {
  return dtype == POTQ_FLOAT32 ? static_cast<const float*>(numbers)[index]
                               : from_bfloat16(static_cast<const uint16_t*>(numbers)[index]);
}

inline void store_numbers(const float* from, void* to, int64_t index, int count, int dtype) {
  if (dtype == POTQ_FLOAT32) {
    std::memcpy(static_cast<float*>(to) + index, from, size_t(count) * 4);
  } else {
    for (int i = 0; i < count; i++) static_cast<uint16_t*>(to)[index + i] = to_bfloat16(from[i]);
  }
}

// ---------------------------------------------------------------------------------------------- activations to panels

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
  int32_t coarse_sum, fine_sum, factor;
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

// What rounding to whole steps left over, in steps / 254.
inline void round_fine(const float* values, int block, float inverse, Rounded* result) {
  int32_t sum = 0;
  for (int k = 0; k < block; k++) {
    const float steps = values[k] * inverse;
    const int32_t integer = int32_t(rint_small((steps - rint_small(steps)) * 254.0f));
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
  result->factor = 1;
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
    result->factor = 254;
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

inline void put(uint8_t* numbers, int index, const void* value) { std::memcpy(numbers + size_t(index) * 4, value, 4); }

inline void prepare_float(const potq_product& product, const Layout& layout, int64_t first, int rows, uint8_t* panel) {
  const Panel shape(layout, POTQ_FLOAT, rows);
  float values[kMaxBlock];
  for (int b = 0; b < layout.blocks; b++) {
    for (int row = 0; row < rows; row++) {
      load_block(product, first + row, b * layout.block, layout.block, values);
      interleave(values, 16, layout.block / 4, row, rows, panel + size_t(b) * shape.block_bytes);
    }
  }
}

template <class V>
inline void prepare_int8(const potq_product& product, const Layout& layout, int64_t first, int rows, uint8_t* panel) {
  const Panel shape(layout, POTQ_INT8, rows);
  const float reference = float_of(uint32_t(127 - product.format->reference_log2) << 23);
  const int steps = layout.block / 4;
  float values[kMaxBlock];
  Rounded rounded[kMaxPanelRows];
  for (int b = 0; b < layout.blocks; b++) {
    bool any = false;
    uint8_t* coarse = panel + shape.blocks + size_t(b) * shape.block_bytes;
    uint8_t* fine = panel + shape.fine + size_t(b) * shape.block_bytes;
    for (int row = 0; row < rows; row++) {
      load_block(product, first + row, b * layout.block, layout.block, values);
      any |= round_block(values, layout.block, reference, &rounded[row]);
      put(coarse, row, &rounded[row].scale);
      const int32_t start = V::kStart * rounded[row].coarse_sum;
      put(coarse, rows + row, &start);
      interleave(rounded[row].coarse, 4, steps, row, rows, coarse + shape.values);
    }
    panel[b] = any;
    for (int row = 0; any && row < rows; row++) {
      put(fine, row, &rounded[row].factor);
      const int32_t start = V::kStart * rounded[row].fine_sum;
      put(fine, rows + row, &start);
      interleave(rounded[row].fine, 4, steps, row, rows, fine + shape.values);
    }
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

// ---------------------------------------------------------------------------------------------- codes to levels

// Levels of 16 columns of V::kLanes rows, as 4 vectors of 4 columns each. `tiles` and `thirds` are those of the 16 columns.
template <class V, int Bits>
struct Decoder;

template <class V>
struct Decoder<V, 4> {
  static constexpr int kUnitBytes = 128;
  typename V::Table table;
  explicit Decoder(const int8_t* levels) : table(V::table(levels)) {}
  POTQ_INLINE void operator()(const uint8_t* tiles, const uint8_t*, typename V::Bytes* out) const {
    POTQ_UNROLL
    for (int i = 0; i < 2; i++) {
      const typename V::Bytes codes = V::load(tiles + i * kTile);
      out[2 * i] = V::lookup(table, V::low(codes));
      out[2 * i + 1] = V::lookup(table, V::high(codes));
    }
  }
};

// A nibble holds two codes of 2 bits: one table looks at the lower, another at the upper, and no bits need to be cut out.
struct NibbleTables {
  int8_t lower[16], upper[16];
  explicit NibbleTables(const int8_t* levels) {
    for (int i = 0; i < 16; i++) lower[i] = levels[i & 3], upper[i] = levels[i >> 2];
  }
};

template <class V>
struct Decoder<V, 2> {
  static constexpr int kUnitBytes = 64;
  typename V::Table lower, upper;
  explicit Decoder(const int8_t* levels)
      : lower(V::table(NibbleTables(levels).lower)), upper(V::table(NibbleTables(levels).upper)) {}
  POTQ_INLINE void operator()(const uint8_t* tiles, const uint8_t*, typename V::Bytes* out) const {
    const typename V::Bytes codes = V::load(tiles), low = V::low(codes), high = V::high(codes);
    out[0] = V::lookup(lower, low);
    out[1] = V::lookup(upper, low);
    out[2] = V::lookup(lower, high);
    out[3] = V::lookup(upper, high);
  }
};

template <class V>
struct Decoder<V, 3> {
  static constexpr int kUnitBytes = 64;
  typename V::Table lower[2], upper[2];  // by the third bit
  explicit Decoder(const int8_t* levels)
      : lower{V::table(NibbleTables(levels).lower), V::table(NibbleTables(levels + 4).lower)},
        upper{V::table(NibbleTables(levels).upper), V::table(NibbleTables(levels + 4).upper)} {}
  POTQ_INLINE void operator()(const uint8_t* tiles, const uint8_t* thirds, typename V::Bytes* out) const {
    const typename V::Bytes codes = V::load(tiles), low = V::low(codes), high = V::high(codes);
    out[0] = V::lookup(lower[0], lower[1], low, V::mask(thirds));
    out[1] = V::lookup(upper[0], upper[1], low, V::mask(thirds + 8));
    out[2] = V::lookup(lower[0], lower[1], high, V::mask(thirds + 16));
    out[3] = V::lookup(upper[0], upper[1], high, V::mask(thirds + 24));
  }
};

template <class V>
struct Decoder<V, 8> {
  static constexpr int kUnitBytes = 256;
  explicit Decoder(const int8_t*) {}
  POTQ_INLINE void operator()(const uint8_t* tiles, const uint8_t*, typename V::Bytes* out) const {
    POTQ_UNROLL
    for (int i = 0; i < 4; i++) out[i] = V::levels(V::load(tiles + i * kTile));
  }
};

// ---------------------------------------------------------------------------------------------- products

// Where the codes of a block are, for V::kLanes of its rows.
struct Codes {
  const uint8_t *tiles, *thirds;
  int units;
};

// The two arithmetics: what is done with one block of V::kLanes rows and M activation rows.
template <class V, int Bits, int M>
struct Integer {
  // one accumulator would wait for itself; with few rows, the 4 steps of a unit get their own (integers add up in any order)
  static constexpr int kChains = M == 1 ? 4 : M <= 3 ? 2 : 1;

  // sum of level * value, for each activation row
  static POTQ_INLINE void dot(const Decoder<V, Bits>& decode, const Codes& codes, const uint8_t* panel,
                              typename V::Ints* result) {
    const int32_t* starts = reinterpret_cast<const int32_t*>(panel) + M;
    const int8_t* values = reinterpret_cast<const int8_t*>(panel) + 8 * M;
    typename V::Ints total[kChains][M];
    POTQ_UNROLL
    for (int i = 0; i < M; i++) {
      total[0][i] = V::start(starts + i);
      POTQ_UNROLL
      for (int c = 1; c < kChains; c++) total[c][i] = V::zero();
    }
    for (int u = 0; u < codes.units; u++, values += 16 * M) {
      typename V::Bytes levels[4];
      decode(codes.tiles + u * Decoder<V, Bits>::kUnitBytes, codes.thirds + u * 32, levels);
      POTQ_UNROLL
      for (int s = 0; s < 4; s++) {
        POTQ_UNROLL
        for (int i = 0; i < M; i++) total[s % kChains][i] = V::dot(total[s % kChains][i], levels[s], values + 4 * (s * M + i));
      }
    }
    POTQ_UNROLL
    for (int i = 0; i < M; i++) {
      result[i] = total[0][i];
      POTQ_UNROLL
      for (int c = 1; c < kChains; c++) result[i] = V::add(result[i], total[c][i]);
    }
  }

  static POTQ_INLINE void block(const Decoder<V, Bits>& decode, const Codes& codes, const uint8_t* panel, const uint8_t* fine,
                                typename V::Floats weight_scale, typename V::Floats* y) {
    typename V::Ints sum[M];
    dot(decode, codes, panel, sum);
    if (fine) add_fine(decode, codes, fine, sum);
    const float* scales = reinterpret_cast<const float*>(panel);
    POTQ_UNROLL
    for (int i = 0; i < M; i++) y[i] = V::fma(V::floats(sum[i]), V::mul(weight_scale, V::broadcast(scales + i)), y[i]);
  }

  static void add_fine(const Decoder<V, Bits>& decode, const Codes& codes, const uint8_t* fine, typename V::Ints* sum) {
    const int32_t* factors = reinterpret_cast<const int32_t*>(fine);
    typename V::Ints more[M];
    dot(decode, codes, fine, more);
    for (int i = 0; i < M; i++) sum[i] = V::add(V::times(sum[i], factors[i]), more[i]);
  }
};

template <class V, int Bits, int M>
struct Float {
  static POTQ_INLINE void block(const Decoder<V, Bits>& decode, const Codes& codes, const uint8_t* panel, const uint8_t*,
                                typename V::Floats weight_scale, typename V::Floats* y) {
    const float* values = reinterpret_cast<const float*>(panel);
    typename V::Floats total[4][M];
    POTQ_UNROLL
    for (int i = 0; i < 4 * M; i++) total[i / M][i % M] = V::zero_floats();
    for (int u = 0; u < codes.units; u++) {
      typename V::Bytes levels[4];
      decode(codes.tiles + u * Decoder<V, Bits>::kUnitBytes, codes.thirds + u * 32, levels);
      POTQ_UNROLL
      for (int s = 0; s < 4; s++, values += 4 * M) {
        POTQ_UNROLL
        for (int j = 0; j < 4; j++) {
          const typename V::Floats level = V::column(levels[s], j);
          POTQ_UNROLL
          for (int i = 0; i < M; i++) total[j][i] = V::fma(level, V::broadcast(values + 4 * i + j), total[j][i]);
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

template <class V, int M>
inline void store_rows(const potq_product& product, int64_t first, int row, const typename V::Floats (*y)[M]) {
  const int64_t rows = product.format->rows;
  const int count = smaller(kRows, int(rows) - row);
  for (int i = 0; i < M; i++) {
    float values[kRows];
    for (int p = 0; p < kRows / V::kLanes; p++) V::store(values + p * V::kLanes, y[p][i]);
    store_numbers(values, product.y, (first + i) * rows + row, count, product.dtype);
  }
}

template <class V>
inline void load_bias(const potq_product& product, int row, float* bias) {
  for (int r = 0; r < kRows; r++) {
    const bool present = product.bias && row + r < product.format->rows;
    bias[r] = present ? load_number(product.bias, row + r, product.dtype) : 0.0f;
  }
}

template <class V, int Bits, int M, template <class, int, int> class Arithmetic>
void multiply_panel(const potq_product& product, const uint8_t* panel, int64_t first, int first_block, int last_block) {
  constexpr bool kInteger = std::is_same<Arithmetic<V, Bits, M>, Integer<V, Bits, M>>::value;
  constexpr int kParts = kRows / V::kLanes;
  const potq_format& format = *product.format;
  const Layout layout(format);
  const Panel shape(layout, product.arithmetic, M);
  const Decoder<V, Bits> decode(format.levels);
  const int units = layout.block / kUnit;
  const size_t thirds_offset = size_t(units) * Decoder<V, Bits>::kUnitBytes;
  const float reference = kInteger ? 1.0f : float_of(uint32_t(127 - format.reference_log2) << 23);
  for (int r = first_block; r < last_block; r++) {
    const uint8_t* scales = product.tiles + size_t(r) * layout.row_block_bytes;
    const uint8_t* tiles = scales + layout.scales_bytes;
    typename V::Floats y[kParts][M];
    float bias[kRows];
    load_bias<V>(product, r * kRows, bias);
    POTQ_UNROLL
    for (int i = 0; i < kParts * M; i++) y[i / M][i % M] = V::load_floats(bias + i / M * V::kLanes);
    const uint8_t* values = panel + shape.blocks;
    int left = layout.blocks_per_group;
    for (int b = 0; b < layout.blocks; b++) {
      for (size_t byte = 0; byte < layout.block_bytes; byte += 64) V::prefetch(tiles + byte + kPrefetch);
      POTQ_UNROLL
      for (int p = 0; p < kParts; p++) {
        const int lane = p * V::kLanes;
        typename V::Floats scale =
            format.scale_format == POTQ_SCALE_FLOAT16 ? V::float16(scales + 2 * lane) : V::e8m0(scales + lane);
        if (!kInteger) scale = V::mul(scale, V::broadcast(&reference));
        const uint8_t* fine = kInteger && panel[b] ? values + (shape.fine - shape.blocks) : nullptr;
        const Codes codes{tiles + 4 * lane, tiles + thirds_offset + lane / 2, units};
        Arithmetic<V, Bits, M>::block(decode, codes, values, fine, scale, y[p]);
      }
      tiles += layout.block_bytes;
      values += shape.block_bytes;
      if (--left == 0) scales += layout.group_bytes, left = layout.blocks_per_group;
    }
    store_rows<V, M>(product, first, r * kRows, y);
  }
}

// ---------------------------------------------------------------------------------------------- choice by bits and rows

using Multiply = void (*)(const potq_product&, const uint8_t*, int64_t, int, int);

template <class V, int Bits, template <class, int, int> class Arithmetic, int M>
Multiply multiply_of(int rows) {
  if constexpr (M == 0) {
    return nullptr;
  } else {
    return rows == M ? &multiply_panel<V, Bits, M, Arithmetic> : multiply_of<V, Bits, Arithmetic, M - 1>(rows);
  }
}

template <class V, template <class, int, int> class Arithmetic, int M>
Multiply multiply_of_bits(int bits, int rows) {
  switch (bits) {
    case 2: return multiply_of<V, 2, Arithmetic, M>(rows);
    case 3: return multiply_of<V, 3, Arithmetic, M>(rows);
    case 4: return multiply_of<V, 4, Arithmetic, M>(rows);
    default: return multiply_of<V, 8, Arithmetic, M>(rows);
  }
}

template <class V>
void multiply(const potq_product& product, const uint8_t* panel, int64_t first, int rows, int first_block, int last_block) {
  const int bits = product.format->bits;
  const Multiply function = product.arithmetic == POTQ_INT8 ? multiply_of_bits<V, Integer, V::kPanelRows>(bits, rows)
                                                            : multiply_of_bits<V, Float, V::kFloatPanelRows>(bits, rows);
  function(product, panel, first, first_block, last_block);
}

template <class V>
constexpr Kernels kernels_of() {
  return {{V::kPanelRows, V::kFloatPanelRows}, prepare_panel<V>, multiply<V>};
}

}  // namespace
}  // namespace potq
