// The product, once for every instruction set; a file in isa/ supplies the vectors V.
//
// INT8: activations of a row are cut in blocks of at most 64 columns and rounded, q = rint(x 127/amax), scale amax/127. With
// integer levels L and weight scale w the output is, over blocks b ascending,
//     y = fmaf(float(sum_k L[k] q[k]), w * scale[b], y),     y starting at the bias.
// A row's block with an outlier (kOutlier) takes a second int8: 254 q + r in place of q, r = rint(254 (x 127/amax - q)), and
// the scale amax/32258. The sum is taken in int32 (exact in any order), the product w * scale rounded once. FLOAT: four partial
// sums of fmaf(L[k], x[k], s), column k in sum k mod 4, added (s0 + s1) + (s2 + s3), then the same with w / 2^reference_log2
// for w * scale. That order is the contract: every instruction set and every number of threads gives the same bits.
//
// Codes are decoded in registers and used at once for up to V::kPanelRows activation rows; more rows meet the same codes while
// they are in the first-level cache. Where V::kDecodesFirst, several panels share levels that were decoded to bytes before.
// (Not with AVX-512: its shuffles run beside the dot products, on units that are idle else; 8-bit weights, which need none, are
// no faster.)
#pragma once

#include <type_traits>

#include "activations.h"
#include "arithmetic.h"
#include "table.h"

namespace potq {
namespace {

constexpr int kPrefetch = 8192;   // bytes ahead: the hardware stops at the end of a page, and that is too late
constexpr int kChunkBlocks = 16;  // blocks of columns that several panels meet while they are in the first-level cache
constexpr int kGroupPanels = 24;  // panels whose sums wait at the same time

template <class V, template <class, int, int, int> class Arithmetic>
constexpr bool is_integer() {
  return std::is_same<Arithmetic<V, 4, 1, 1>, Integer<V, 4, 1, 1>>::value;
}

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
  for (int p = 0; p < kRows / V::kLanes; p++) {
    for (int i = 0; i < rows; i++) y[p * rows + i] = V::load_floats(bias + p * V::kLanes);
  }
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

// The same, if `bytes` are known: one question for all lines.
template <class V, size_t Bytes>
POTQ_INLINE void fetch_whole(const uint8_t* from, const uint8_t* end) {
  if (from + kPrefetch >= end) return;
  POTQ_UNROLL
  for (size_t byte = 0; byte < Bytes; byte += 64) V::prefetch(from + byte + kPrefetch);
}

// What the columns [first, last) of blocks add to y, for some row blocks and one panel.
struct Chunk {
  const potq_format* format;
  const Layout* layout;
  const uint8_t* scales;  // the first row block's
  const uint8_t* tiles;   // of its block `first`
  size_t block_bytes;     // of these tiles
  const uint8_t* end;     // of what is worth prefetching
  const uint8_t* panel;
  int first, last;
};

// R strips of rows, M activation rows; blocks of `Units` units, or (0) as the layout says.
template <class V, int Bits, int M, int R, template <class, int, int, int> class Arithmetic, int Units = 0>
void multiply_chunk(const Decoder<V, Bits>& decoder, const Chunk& chunk, typename V::Floats* sums) {
  constexpr bool kInteger = is_integer<V, Arithmetic>();
  constexpr int kBlocks = R * V::kLanes / kRows;
  const Layout& layout = *chunk.layout;
  const Panel shape(layout, kInteger ? POTQ_INT8 : POTQ_FLOAT, M, V::kNarrowSteps);
  const int units = Units ? Units : layout.block / kUnit, scale_format = chunk.format->scale_format;
  const size_t thirds = size_t(units) * Decoder<V, Bits>::kUnitBytes;
  const float reference = float_of(uint32_t(127 - chunk.format->reference_log2) << 23);
  const uint8_t* scales = chunk.scales + size_t(chunk.first / layout.blocks_per_group) * layout.group_bytes;
  const uint8_t* tiles = chunk.tiles;
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
    for (int r = 0; r < kBlocks && Bits != kDecoded; r++) {
      const uint8_t* from = tiles + size_t(r) * layout.row_block_bytes;
      if constexpr (Units > 0)
        fetch_whole<V, size_t(Units * kUnit * kRows * Bits / 8)>(from, chunk.end);
      else
        fetch<V>(from, layout.block_bytes, chunk.end);
    }
    const Codes codes{tiles, tiles + thirds, units, layout.row_block_bytes};
    const int fine_rows = kInteger ? chunk.panel[b] : 0;
    Arithmetic<V, Bits, M, R>::block(decoder, codes, values, values + (shape.fine - shape.blocks), fine_rows, scale, y);
    tiles += chunk.block_bytes;
    values += shape.block_bytes;
    if (--left == 0) scales += layout.group_bytes, left = layout.blocks_per_group;
  }
  for (int i = 0; i < R * M; i++) sums[i] = y[i / M][i % M];
}

// One activation row and whole blocks, in a function of its own: 16 registers are enough for it alone.
template <class V, int Bits, int R, template <class, int, int, int> class Arithmetic>
POTQ_APART void multiply_one(const Decoder<V, Bits>& decoder, const Chunk& chunk, typename V::Floats* sums) {
  multiply_chunk<V, Bits, 1, R, Arithmetic, kMaxBlock / kUnit>(decoder, chunk, sums);
}

// multiply_chunk for a number of activation rows that is known only now.
template <class V, int Bits, int R, template <class, int, int, int> class Arithmetic, int M>
void multiply_rows(int rows, const Decoder<V, Bits>& decoder, const Chunk& chunk, typename V::Floats* sums) {
  if constexpr (M > (Bits == kDecoded ? 2 : 1)) {
    if (rows < M) return multiply_rows<V, Bits, R, Arithmetic, M - 1>(rows, decoder, chunk, sums);
  }
  if constexpr (M == 1 && V::kOneRowApart && is_integer<V, Arithmetic>()) {
    if (chunk.layout->block == kMaxBlock) return multiply_one<V, Bits, R, Arithmetic>(decoder, chunk, sums);
  }
  multiply_chunk<V, Bits, M, R, Arithmetic>(decoder, chunk, sums);
}

// The levels of a row block's blocks [first, last), of `units` units each, to be read by Decoder<V, kDecoded>.
template <class V, int Bits>
void decode_blocks(const Decoder<V, Bits>& decoder, const Layout& layout, const Chunk& chunk, uint8_t* levels) {
  const int units = layout.block / kUnit;
  const uint8_t* tiles = chunk.tiles;
  for (int b = chunk.first; b < chunk.last; b++, tiles += layout.block_bytes) {
    fetch<V>(tiles, layout.block_bytes, chunk.end);
    const Codes codes{tiles, tiles + size_t(units) * Decoder<V, Bits>::kUnitBytes, units, 0};
    for (int u = 0; u < units; u++, levels += 4 * kTile) {
      POTQ_UNROLL
      for (int i = 0; i < 2 * kRows / V::kLanes; i++) {
        const int strip = i / 2, half = i % 2;
        typename V::Bytes found[2];
        codes.decode<V, Bits>(decoder, strip, u, half, found);
        if constexpr (V::kPairsRows) V::pair(found);
        V::save(levels + 2 * half * kTile + strip * V::kLanes * 4, found[0]);
        V::save(levels + (2 * half + 1) * kTile + strip * V::kLanes * 4, found[1]);
      }
    }
  }
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
void multiply_group(const potq_product& product, const Decoder<V, Bits>& decoder, const Layout& layout, const Panels& panels,
                    const uint8_t* prepared, int64_t first, int first_panel, int last_panel, int block, const uint8_t* end) {
  constexpr int kParts = kRows / V::kLanes, kStrips = kBlocks * kParts;
  constexpr bool kDecodes = V::kDecodesFirst && Bits != 8 && is_integer<V, Arithmetic>();
  const Decoder<V, kDecodes ? kDecoded : Bits> decoded(product.format->levels, 0);
  typename V::Floats y[kGroupPanels][kStrips * kMax];
  alignas(64) uint8_t levels[kDecodes ? kChunkBlocks * kMaxBlock * kRows : 1];
  const uint8_t* row_block = product.tiles + size_t(block) * layout.row_block_bytes;
  for (int b = 0; b < kBlocks; b++) fetch<V>(row_block + size_t(b) * layout.row_block_bytes, layout.scales_bytes, end);
  const int step = panels.count == 1 ? layout.blocks : kChunkBlocks;
  for (int b = 0; b < layout.blocks; b += step) {
    const bool starts = b == 0, ends = b + step >= layout.blocks;
    const uint8_t* tiles = row_block + layout.scales_bytes + size_t(b) * layout.block_bytes;
    Chunk chunk{
        product.format, &layout, row_block, tiles, layout.block_bytes, end, nullptr, b, ends ? layout.blocks : b + step};
    if constexpr (kDecodes) {
      if (panels.count > 1) {
        decode_blocks<V, Bits>(decoder, layout, chunk, levels);
        chunk.tiles = levels, chunk.block_bytes = size_t(layout.block) * kRows;
      }
    }
    for (int p = first_panel; p < last_panel; p++) {
      const int rows = panels.rows(p);
      const int64_t at = first + panels.first(p);
      typename V::Floats* sums = y[p - first_panel];
      for (int r = 0; r < kBlocks; r++) {
        if (starts) load_bias<V>(product, rows, (block + r) * kRows, sums + r * kParts * rows);
        if (ends) fetch_outputs<V>(product, at, rows, (block + r) * kRows);
      }
      chunk.panel = prepared + panels.offset(p);
      if (p > 0) chunk.end = nullptr;
      if (kDecodes && panels.count > 1)
        multiply_rows<V, kDecodes ? kDecoded : Bits, kStrips, Arithmetic, kMax>(rows, decoded, chunk, sums);
      else
        multiply_rows<V, Bits, kStrips, Arithmetic, kMax>(rows, decoder, chunk, sums);
      for (int r = 0; ends && r < kBlocks; r++) store_rows<V>(product, at, rows, (block + r) * kRows, sums + r * kParts * rows);
    }
  }
}

template <class V, int Bits, template <class, int, int, int> class Arithmetic, int kMax>
void multiply_bits(const potq_product& product, const uint8_t* prepared, int64_t first, int rows, int first_block,
                   int last_block) {
  const Layout layout(*product.format);
  const Panels panels(layout, product.arithmetic, rows, kMax, V::kNarrowSteps);
  const Decoder<V, Bits> decoder(product.format->levels, is_integer<V, Arithmetic>() ? V::offset(*product.format) : 0);
  const uint8_t* end = product.tiles + size_t(last_block) * layout.row_block_bytes;
  constexpr bool kPairs = V::kPairFrom <= kMax;  // of row blocks; else they need no code
  const int pairs = kPairs && panels.rows(0) >= V::kPairFrom ? (last_block - first_block) / 2 : 0;
  for (int p = 0; p < panels.count; p += kGroupPanels) {
    const int last = smaller(p + kGroupPanels, panels.count);
    if constexpr (kPairs) {
      for (int block = first_block; block < first_block + 2 * pairs; block += 2)
        multiply_group<V, Bits, 2, Arithmetic, kMax>(product, decoder, layout, panels, prepared, first, p, last, block, end);
    }
    for (int block = first_block + 2 * pairs; block < last_block; block++)
      multiply_group<V, Bits, 1, Arithmetic, kMax>(product, decoder, layout, panels, prepared, first, p, last, block, end);
  }
}

template <class V, template <class, int, int, int> class Arithmetic, int kMax>
void multiply_with(const potq_product& product, const uint8_t* prepared, int64_t first, int rows, int first_block,
                   int last_block) {
  switch (tile_bits(*product.format)) {
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
  return {{V::kPanelRows, V::kFloatPanelRows}, V::narrow_steps, prepare_panel<V>, multiply<V>};
}

}  // namespace
}  // namespace potq
