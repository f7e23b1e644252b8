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
// used at once for up to V::kPanelRows activation rows; more rows meet the same codes while they are in the first-level cache.
// Rejected: decoding into a buffer that all rows share. Shuffles run beside the dot products, on units that are idle else;
// 8-bit weights, which need none, are no faster.
#pragma once

#include <type_traits>

#include "../numbers.h"
#include "layout.h"
#include "table.h"

#if defined(__GNUC__)
#define POTQ_INLINE inline __attribute__((always_inline))
#else
#define POTQ_INLINE inline
#endif
#if defined(__GNUC__) && !defined(POTQ_SMALL)
#define POTQ_UNROLL _Pragma("GCC unroll 16")
#else
#define POTQ_UNROLL
#endif
#if defined(__GNUC__) && !defined(POTQ_SMALL) && !defined(POTQ_ROLLED_UNITS)
#define POTQ_UNROLL_UNITS _Pragma("GCC unroll 4")
#else
#define POTQ_UNROLL_UNITS
#endif

namespace potq {
namespace {

constexpr int kPrefetch = 8192;  // bytes ahead: the hardware stops at the end of a page, and that is too late
constexpr int kMaxPanelRows = 6;
constexpr int kChunkBlocks = 16;  // blocks of columns that several panels meet while they are in the first-level cache
constexpr int kGroupPanels = 24;  // panels whose sums wait at the same time
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

// Levels of 8 columns of V::kLanes rows, as 2 vectors of 4 columns each: columns 8 * half + 0..7 of a unit, whose codes begin
// at `tiles` and `thirds`. (Half a unit, because 8 columns of two strips of rows are what the registers have room for.)
template <class V, int Bits>
struct Decoder;

template <class V>
struct Decoder<V, 4> {
  static constexpr int kUnitBytes = 128;
  typename V::Table table;
  explicit Decoder(const int8_t* levels) : table(V::table(levels)) {}
  POTQ_INLINE void operator()(const uint8_t* tiles, const uint8_t*, int half, typename V::Bytes* out) const {
    const typename V::Bytes codes = V::load(tiles + half * kTile);
    out[0] = V::lookup(table, V::low(codes));
    out[1] = V::lookup(table, V::high(codes));
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
  POTQ_INLINE void operator()(const uint8_t* tiles, const uint8_t*, int half, typename V::Bytes* out) const {
    const typename V::Bytes codes = V::load(tiles), nibbles = half ? V::high(codes) : V::low(codes);
    out[0] = V::lookup(lower, nibbles);
    out[1] = V::lookup(upper, nibbles);
  }
};

template <class V>
struct Decoder<V, 3> {
  static constexpr int kUnitBytes = 64;
  typename V::Table lower[2], upper[2];  // by the third bit
  explicit Decoder(const int8_t* levels)
      : lower{V::table(NibbleTables(levels).lower), V::table(NibbleTables(levels + 4).lower)},
        upper{V::table(NibbleTables(levels).upper), V::table(NibbleTables(levels + 4).upper)} {}
  POTQ_INLINE void operator()(const uint8_t* tiles, const uint8_t* thirds, int half, typename V::Bytes* out) const {
    const typename V::Bytes codes = V::load(tiles), nibbles = half ? V::high(codes) : V::low(codes);
    out[0] = V::lookup(lower[0], lower[1], nibbles, V::mask(thirds + 16 * half));
    out[1] = V::lookup(upper[0], upper[1], nibbles, V::mask(thirds + 16 * half + 8));
  }
};

template <class V>
struct Decoder<V, 8> {
  static constexpr int kUnitBytes = 256;
  explicit Decoder(const int8_t*) {}
  POTQ_INLINE void operator()(const uint8_t* tiles, const uint8_t*, int half, typename V::Bytes* out) const {
    out[0] = V::levels(V::load(tiles + 2 * half * kTile));
    out[1] = V::levels(V::load(tiles + (2 * half + 1) * kTile));
  }
};

// ---------------------------------------------------------------------------------------------- products

// The codes of one block of columns, for R strips of V::kLanes rows: a row block is one strip (AVX-512), two or four.
struct Codes {
  const uint8_t *tiles, *thirds;
  int units;
  size_t row_block_bytes;

  template <class V>
  POTQ_INLINE size_t strip(int strip, int bytes_per_row_times_2) const {
    constexpr int kParts = kRows / V::kLanes;
    return size_t(strip / kParts) * row_block_bytes + size_t(strip % kParts * V::kLanes * bytes_per_row_times_2 / 2);
  }
  template <class V, int Bits>
  POTQ_INLINE void decode(const Decoder<V, Bits>& decoder, int of_strip, int unit, int half, typename V::Bytes* out) const {
    decoder(tiles + unit * Decoder<V, Bits>::kUnitBytes + strip<V>(of_strip, 8), thirds + unit * 32 + strip<V>(of_strip, 1),
            half, out);
  }
};

// The two arithmetics: what is done with one block of columns, R strips of rows and M activation rows.
template <class V, int Bits, int M, int R>
struct Integer {
  // one accumulator would wait for itself; with few of them, the 4 steps of a unit get their own (integers add up in any order)
  static constexpr int kChains = R * M == 1 ? 4 : R * M <= 4 ? 2 : 1;

  // sum of level * value, for each strip and activation row
  static POTQ_INLINE void dot(const Decoder<V, Bits>& decoder, const Codes& codes, const uint8_t* panel,
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

  static POTQ_INLINE void block(const Decoder<V, Bits>& decoder, const Codes& codes, const uint8_t* panel, const uint8_t* fine,
                                const typename V::Floats* weight_scale, typename V::Floats (*y)[M]) {
    typename V::Ints sum[R][M];
    dot(decoder, codes, panel, sum);
    if (fine) add_fine(decoder, codes, fine, sum);
    const float* scales = reinterpret_cast<const float*>(panel);
    POTQ_UNROLL
    for (int r = 0; r < R; r++) {
      POTQ_UNROLL
      for (int i = 0; i < M; i++)
        y[r][i] = V::fma(V::floats(sum[r][i]), V::mul(weight_scale[r], V::broadcast(scales + i)), y[r][i]);
    }
  }

  static void add_fine(const Decoder<V, Bits>& decoder, const Codes& codes, const uint8_t* fine, typename V::Ints (*sum)[M]) {
    const int32_t* factors = reinterpret_cast<const int32_t*>(fine);
    typename V::Ints more[R][M];
    dot(decoder, codes, fine, more);
    for (int r = 0; r < R; r++) {
      for (int i = 0; i < M; i++) sum[r][i] = V::add(V::times(sum[r][i], factors[i]), more[r][i]);
    }
  }
};

template <class V, int Bits, int M, int R>
struct Float {
  static POTQ_INLINE void block(const Decoder<V, Bits>& decoder, const Codes& codes, const uint8_t* panel, const uint8_t*,
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

// The outputs of one panel and one row block; y holds `rows` vectors for each strip.
template <class V>
inline void store_rows(const potq_product& product, int64_t first, int rows, int row, const typename V::Floats* y) {
  const int count = smaller(kRows, product.format->rows - row);
  const bool whole = count == kRows && product.dtype == POTQ_FLOAT32;
  for (int i = 0; i < rows; i++) {
    const int64_t at = (first + i) * product.format->rows + row;
    float values[kRows];
    float* to = whole ? static_cast<float*>(product.y) + at : values;
    for (int p = 0; p < kRows / V::kLanes; p++) V::store(to + p * V::kLanes, y[p * rows + i]);
    if (!whole) store_numbers(values, product.y, at, count, product.dtype);
  }
}

template <class V>
inline void load_bias(const potq_product& product, int rows, int row, typename V::Floats* y) {
  float bias[kRows] = {};
  const int count = product.bias ? smaller(kRows, product.format->rows - row) : 0;
  for (int r = 0; r < count; r++) bias[r] = load_number(product.bias, row + r, product.dtype);
  for (int i = 0; i < kRows / V::kLanes * rows; i++) y[i] = V::load_floats(bias + i / rows * V::kLanes);
}

// The stored scales of strip r.
template <class V>
POTQ_INLINE typename V::Floats load_scales(const uint8_t* scales, int format, size_t row_block_bytes, int r) {
  constexpr int kParts = kRows / V::kLanes;
  const uint8_t* from = scales + size_t(r / kParts) * row_block_bytes;
  const int lane = r % kParts * V::kLanes;
  return format == POTQ_SCALE_FLOAT16 ? V::float16(from + 2 * lane) : V::e8m0(from + lane);
}

template <class V>
POTQ_INLINE void fetch(const uint8_t* from, size_t bytes, const uint8_t* end) {
  for (size_t byte = 0; byte < bytes && from + byte + kPrefetch < end; byte += 64) V::prefetch(from + byte + kPrefetch);
}

// What the columns [first, last) of blocks add to y, for some row blocks and one panel.
struct Chunk {
  const potq_format* format;
  const Layout* layout;
  const uint8_t* row_block;  // the first one's tiles
  const uint8_t* end;        // of what is worth prefetching
  const uint8_t* panel;
  int first, last;
};

// R strips of rows, M activation rows.
template <class V, int Bits, int M, int R, template <class, int, int, int> class Arithmetic>
void multiply_chunk(const Chunk& chunk, typename V::Floats* sums) {
  constexpr bool kInteger = std::is_same<Arithmetic<V, Bits, M, R>, Integer<V, Bits, M, R>>::value;
  constexpr int kBlocks = R * V::kLanes / kRows;
  const Layout& layout = *chunk.layout;
  const Panel shape(layout, kInteger ? POTQ_INT8 : POTQ_FLOAT, M);
  const Decoder<V, Bits> decoder(chunk.format->levels);
  const int units = layout.block / kUnit, scale_format = chunk.format->scale_format;
  const size_t thirds = size_t(units) * Decoder<V, Bits>::kUnitBytes;
  const float reference = float_of(uint32_t(127 - chunk.format->reference_log2) << 23);
  const uint8_t* scales = chunk.row_block + size_t(chunk.first / layout.blocks_per_group) * layout.group_bytes;
  const uint8_t* tiles = chunk.row_block + layout.scales_bytes + size_t(chunk.first) * layout.block_bytes;
  const uint8_t* values = chunk.panel + shape.blocks + size_t(chunk.first) * shape.block_bytes;
  typename V::Floats y[R][M];
  for (int i = 0; i < R * M; i++) y[i / M][i % M] = sums[i];
  int left = layout.blocks_per_group - chunk.first % layout.blocks_per_group;
  for (int b = chunk.first; b < chunk.last; b++) {
    typename V::Floats scale[R];
    POTQ_UNROLL
    for (int r = 0; r < R; r++) {
      scale[r] = load_scales<V>(scales, scale_format, layout.row_block_bytes, r);
      if (!kInteger) scale[r] = V::mul(scale[r], V::broadcast(&reference));
    }
    POTQ_UNROLL
    for (int r = 0; r < kBlocks; r++) fetch<V>(tiles + size_t(r) * layout.row_block_bytes, layout.block_bytes, chunk.end);
    const uint8_t* fine = kInteger && chunk.panel[b] ? values + (shape.fine - shape.blocks) : nullptr;
    Arithmetic<V, Bits, M, R>::block(decoder, Codes{tiles, tiles + thirds, units, layout.row_block_bytes}, values, fine, scale,
                                     y);
    tiles += layout.block_bytes;
    values += shape.block_bytes;
    if (--left == 0) scales += layout.group_bytes, left = layout.blocks_per_group;
  }
  for (int i = 0; i < R * M; i++) sums[i] = y[i / M][i % M];
}

// multiply_chunk for a number of activation rows that is known only now.
template <class V, int Bits, int R, template <class, int, int, int> class Arithmetic, int M>
void multiply_rows(int rows, const Chunk& chunk, typename V::Floats* sums) {
  if constexpr (M > 1) {
    if (rows < M) return multiply_rows<V, Bits, R, Arithmetic, M - 1>(rows, chunk, sums);
  }
  multiply_chunk<V, Bits, M, R, Arithmetic>(chunk, sums);
}

// Ask for the lines that store_rows will write: those of neighbouring activation rows are pages apart.
template <class V>
inline void fetch_outputs(const potq_product& product, int64_t first, int rows, int row) {
  const size_t size = product.dtype == POTQ_FLOAT32 ? 4 : 2;
  const int last = smaller(kRows, product.format->rows - row) - 1;
  for (int i = 0; i < rows; i++) {
    const uint8_t* to = static_cast<uint8_t*>(product.y) + size_t((first + i) * product.format->rows + row) * size;
    V::prefetch_write(to);
    V::prefetch_write(to + size_t(last) * size);
  }
}

// kBlocks row blocks and a group of panels. Columns are taken in chunks, small enough for the codes and the activations to stay
// in the first-level cache while every panel of the group meets every strip; sums wait in y.
template <class V, int Bits, int kBlocks, template <class, int, int, int> class Arithmetic, int kMax>
void multiply_group(const potq_product& product, const Layout& layout, const Panels& panels, const uint8_t* prepared,
                    int64_t first, int first_panel, int last_panel, int block, const uint8_t* end) {
  constexpr int kParts = kRows / V::kLanes, kStrips = kBlocks * kParts;
  typename V::Floats y[kGroupPanels][kStrips * kMax];
  const uint8_t* tiles = product.tiles + size_t(block) * layout.row_block_bytes;
  for (int b = 0; b < kBlocks; b++) fetch<V>(tiles + size_t(b) * layout.row_block_bytes, layout.scales_bytes, end);
  const int step = panels.count == 1 ? layout.blocks : kChunkBlocks;
  for (int b = 0; b < layout.blocks; b += step) {
    const bool starts = b == 0, ends = b + step >= layout.blocks;
    for (int p = first_panel; p < last_panel; p++) {
      const int rows = panels.rows(p);
      const int64_t at = first + panels.first(p);
      typename V::Floats* sums = y[p - first_panel];
      for (int r = 0; r < kBlocks; r++) {
        if (starts) load_bias<V>(product, rows, (block + r) * kRows, sums + r * kParts * rows);
        if (ends) fetch_outputs<V>(product, at, rows, (block + r) * kRows);
      }
      const uint8_t* fetch_end = p == 0 ? end : nullptr;
      const int last = ends ? layout.blocks : b + step;
      multiply_rows<V, Bits, kStrips, Arithmetic, kMax>(
          rows, Chunk{product.format, &layout, tiles, fetch_end, prepared + panels.offset(p), b, last}, sums);
      for (int r = 0; ends && r < kBlocks; r++) store_rows<V>(product, at, rows, (block + r) * kRows, sums + r * kParts * rows);
    }
  }
}

template <class V, int Bits, template <class, int, int, int> class Arithmetic, int kMax>
void multiply_bits(const potq_product& product, const uint8_t* prepared, int64_t first, int rows, int first_block,
                   int last_block) {
  const Layout layout(*product.format);
  const Panels panels(layout, product.arithmetic, rows, kMax);
  const uint8_t* end = product.tiles + size_t(last_block) * layout.row_block_bytes;
  const int pairs = panels.rows(0) >= V::kPairFrom ? (last_block - first_block) / 2 : 0;
  for (int p = 0; p < panels.count; p += kGroupPanels) {
    const int last = smaller(p + kGroupPanels, panels.count);
    for (int block = first_block; block < first_block + 2 * pairs; block += 2)
      multiply_group<V, Bits, 2, Arithmetic, kMax>(product, layout, panels, prepared, first, p, last, block, end);
    for (int block = first_block + 2 * pairs; block < last_block; block++)
      multiply_group<V, Bits, 1, Arithmetic, kMax>(product, layout, panels, prepared, first, p, last, block, end);
  }
}

template <class V, template <class, int, int, int> class Arithmetic, int kMax>
void multiply_with(const potq_product& product, const uint8_t* prepared, int64_t first, int rows, int first_block,
                   int last_block) {
  switch (product.format->bits) {
    case 2: return multiply_bits<V, 2, Arithmetic, kMax>(product, prepared, first, rows, first_block, last_block);
    case 3: return multiply_bits<V, 3, Arithmetic, kMax>(product, prepared, first, rows, first_block, last_block);
    case 4: return multiply_bits<V, 4, Arithmetic, kMax>(product, prepared, first, rows, first_block, last_block);
    default: return multiply_bits<V, 8, Arithmetic, kMax>(product, prepared, first, rows, first_block, last_block);
  }
}

template <class V>
void multiply(const potq_product& product, const uint8_t* prepared, int64_t first, int rows, int first_block, int last_block) {
  if (product.arithmetic == POTQ_INT8)
    multiply_with<V, Integer, V::kPanelRows>(product, prepared, first, rows, first_block, last_block);
  else
    multiply_with<V, Float, V::kFloatPanelRows>(product, prepared, first, rows, first_block, last_block);
}

template <class V>
constexpr Kernels kernels_of() {
  return {{V::kPanelRows, V::kFloatPanelRows}, prepare_panel<V>, multiply<V>};
}

}  // namespace
}  // namespace potq
