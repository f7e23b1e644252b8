// The kernels' own layout of a weight (tiles) and of activations (panels).
//
// Rows are taken in blocks of 16 and columns in steps of 4, because 16 rows x 4 columns of decoded bytes are 64 bytes: one
// AVX-512 register whose 32-bit lanes are the rows, two AVX2 or four NEON ones. An int8 dot product then sums 4 neighbouring
// columns of every row at once, the activations are the same 4 bytes for all lanes (a broadcast load), and no horizontal sum
// is ever needed. (Rejected: columns in lanes, which sums across lanes at the end of every group.)
//
//   row block  = scales of its groups: 16 float16 (or E8M0 bytes) a group, padded to 64 bytes; then its blocks
//   block      = codes of the `block` columns (16, 32, 48 or 64; a divisor of the group) that share one activation scale
//   4 bits     a tile of 64 bytes is 16 rows x 8 columns: byte 4 r + j holds column j (low nibble) and column 4 + j (high)
//   2 bits     16 rows x 16 columns: byte 4 r + j holds columns j, 4 + j, 8 + j, 12 + j, lowest bits first
//   3 bits     the low 2 bits of every code, as at 2 bits but for the order of the columns: j, 8 + j, 4 + j, 12 + j; behind the
//              block's tiles, per tile, 32 bytes of third bits. Rows 0 to 7 have bits 0, 4, 1, 5 of byte 4 r + j for columns
//              j, 4 + j, 8 + j, 12 + j; rows 8 to 15 have bits 2, 6, 3, 7 of byte 4 (r - 8) + j. So one shift lays the third
//              bits of 8 columns beside their low ones, two codes a byte: j and 4 + j, or 8 + j and 12 + j.
//   8 bits     16 rows x 4 columns: byte 4 r + j holds column j
//
// A trellis is decoded when it is packed: tiles hold the numbers of its levels, which have a bit more than its codes.
//
// Columns are padded to whole blocks (their activations are zero), rows to whole row blocks (their scales are zero). Nothing
// but the start of the tiles is aligned: at 3 bits a block of 16 columns has 96 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../potq.h"

namespace potq {
// Every file has its own copy of what follows: were these functions shared, the linker might keep the copy of a file that is
// compiled for AVX-512 and run it everywhere.
namespace {

constexpr int kRows = 16;         // rows of a block
constexpr int kUnit = 16;         // columns; blocks are multiples of it
constexpr int kMaxBlock = 64;     // columns that share an activation scale, at most
constexpr int kTile = 64;         // bytes
constexpr int kFineSteps = 254;   // of a fine row's second int8 in one step of the first
constexpr int kThirdsBytes = 32;  // of the third bits of a unit

inline size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

// Bits of a code in tiles.
inline int tile_bits(const potq_format& format) { return format.bits + format.trellis; }

// Where the code of a step of 4 columns stands in its byte (3 bits: the low two of it).
inline int field_shift(int bits, int step) {
  if (bits == 3) return (step % 2 * 2 + step / 2) * 2;
  const int per_byte = 8 / bits;
  return step % per_byte * bits;
}

// Which bit of byte 4 (lane % 8) + j holds the third bit.
inline int third_shift(int lane, int step) { return step % 2 * 4 + step / 2 + lane / 8 * 2; }

// The largest magnitude of a level.
inline int largest_level(const potq_format& format) {
  const int bits = tile_bits(format);
  int largest = bits == 8 ? 128 : 0;
  for (int code = 0; bits < 8 && code < 1 << bits; code++) {
    const int level = format.levels[code], magnitude = level < 0 ? -level : level;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

struct Layout {
  int block;   // columns that share an activation scale
  int blocks;  // of a row
  int blocks_per_group;
  int groups;           // of a row
  size_t block_bytes;   // codes of 16 rows x block columns
  size_t group_bytes;   // scales of 16 rows and one group
  size_t scales_bytes;  // of a row block, padding included
  size_t row_block_bytes;

  explicit Layout(const potq_format& format) {
    const bool one_group = format.group >= format.columns;
    block = kMaxBlock;
    while (!one_group && format.group % block) block -= kUnit;
    blocks = (format.columns + block - 1) / block;
    groups = one_group ? 1 : (format.columns + format.group - 1) / format.group;
    blocks_per_group = one_group ? blocks : format.group / block;
    block_bytes = size_t(block) * kRows * size_t(tile_bits(format)) / 8;
    group_bytes = kRows * (format.scale_format == POTQ_SCALE_FLOAT16 ? 2 : 1);
    scales_bytes = round_up(size_t(groups) * group_bytes, kTile);
    row_block_bytes = scales_bytes + block_bytes * size_t(blocks);
  }
};

// How many starts the sums of a row's block have: one for `narrow_steps` steps of 4 columns, or one for the block.
constexpr int starts_of(int units, int narrow_steps) {
  return narrow_steps ? (units * (kUnit / 4) + narrow_steps - 1) / narrow_steps : 1;
}

// A panel of prepared activations.
//
// FLOAT: per block of columns the values, 4 columns of each row in turn.
// INT8: a byte a block, how many of its rows hold an outlier; then per block `rows` float scales, the starts of the sums, and
// the int8 values in the same order. A start takes out again what an offset on the levels adds. It is an int32 for the block,
// -V::offset times the sum of the values; or two int16 for every few steps, which are the sums of the columns 0 and 1 of the
// steps and of 2 and 3. A row whose block holds an outlier is rounded finer, to 254 q + r with a second int8 r. Behind all
// blocks a second set of blocks holds these rows alone: their numbers in the panel, the starts of the sums of r, and r.
struct Panel {
  size_t blocks;  // offset of the first block
  size_t values;  // offset of the values in a block
  size_t block_bytes;
  size_t fine;  // offset of the second set, whose blocks are as large
  size_t bytes;

  Panel(const Layout& layout, int arithmetic, int rows, int narrow_steps) {
    const bool integer = arithmetic == POTQ_INT8;
    blocks = integer ? round_up(size_t(layout.blocks), kTile) : 0;
    values = integer ? size_t(rows) * 4 * size_t(1 + starts_of(layout.block / kUnit, narrow_steps)) : 0;
    block_bytes = values + size_t(layout.block) * size_t(rows) * (integer ? 1 : 4);
    fine = round_up(blocks + block_bytes * size_t(layout.blocks), kTile);
    bytes = integer ? round_up(fine + block_bytes * size_t(layout.blocks), kTile) : fine;
  }
};

// How some activation rows are cut in panels: as few as possible, nearly equally high.
struct Panels {
  int total, count;
  size_t panel_bytes;  // of the highest

  Panels(const Layout& layout, int arithmetic, int rows, int most, int narrow_steps)
      : total(rows), count((rows + most - 1) / most) {
    panel_bytes = Panel(layout, arithmetic, (rows + count - 1) / count, narrow_steps).bytes;
  }
  int first(int panel) const { return int(int64_t(total) * panel / count); }
  int rows(int panel) const { return first(panel + 1) - first(panel); }
  size_t offset(int panel) const { return size_t(panel) * panel_bytes; }
};

}  // namespace
}  // namespace potq
