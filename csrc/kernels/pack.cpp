// Canonical rows to tiles, and look-up of canonical rows.
#include <cstring>

#include "../numbers.h"
#include "../potq.h"
#include "../trellis.h"
#include "layout.h"

namespace potq {
namespace {

size_t plane_bytes(const potq_format& format, int bits) { return (size_t(format.columns) * size_t(bits) + 7) / 8; }

size_t row_bytes(const potq_format& format) {
  if (format.bits != 3) return plane_bytes(format, format.bits);
  return plane_bytes(format, 2) + plane_bytes(format, 1);
}

// Code of one column of a canonical row.
inline int code_at(const potq_format& format, const uint8_t* row, int64_t column) {
  const auto field = [](const uint8_t* plane, int64_t index, int bits) {
    return plane[index * bits / 8] >> (index * bits % 8) & ((1 << bits) - 1);
  };
  if (format.bits == 8) return row[column];
  if (format.bits != 3) return field(row, column, format.bits);
  return field(row, column, 2) | field(row + plane_bytes(format, 2), column, 1) << 2;
}

// Codes of a canonical row as tiles have them, one a byte.
void unpack_row(const potq_format& format, const uint8_t* row, int first, int count, uint8_t* codes) {
  for (int i = 0; i < count; i++) codes[i] = uint8_t(code_at(format, row, first + i));
  if (!format.trellis) return;
  Path path;
  for (int64_t column = first < Path::kMemory ? 0 : first - Path::kMemory; column < first; column++)
    path.level(code_at(format, row, column));
  for (int i = 0; i < count; i++) codes[i] = uint8_t(path.level(codes[i]));
}

float scale_at(const potq_format& format, const void* scale, int64_t index) {
  return format.scale_format == POTQ_SCALE_FLOAT16 ? from_float16(static_cast<const uint16_t*>(scale)[index])
                                                   : from_e8m0(static_cast<const uint8_t*>(scale)[index]);
}

void pack_scales(const potq_format& format, const Layout& layout, const void* scale, int block, uint8_t* tiles) {
  const size_t size = layout.group_bytes / kRows;
  std::memset(tiles, 0, layout.scales_bytes);
  for (int lane = 0; lane < kRows; lane++) {
    const int64_t row = int64_t(block) * kRows + lane;
    if (row >= format.rows) return;
    const int64_t from = format.scale_rows == 1 ? 0 : row;
    for (int group = 0; group < layout.groups; group++) {
      const uint8_t* source = static_cast<const uint8_t*>(scale) + size_t(from * layout.groups + group) * size;
      std::memcpy(tiles + (size_t(group) * kRows + size_t(lane)) * size, source, size);
    }
  }
}

inline void put_third(uint8_t* thirds, int lane, int step, int j, int third) {
  uint8_t* byte = thirds + lane % 8 * 4 + j;
  *byte = uint8_t(*byte | third << third_shift(lane, step));
}

// 16 columns of 16 rows; codes[row][column].
void pack_unit(int bits, const uint8_t (*codes)[kMaxBlock], int column, uint8_t* tiles, uint8_t* thirds) {
  const int width = bits == 3 ? 2 : bits, steps = 8 / width;  // steps of 4 columns in a tile
  std::memset(tiles, 0, size_t(4 / steps) * kTile);
  if (bits == 3) std::memset(thirds, 0, kThirdsBytes);
  for (int lane = 0; lane < kRows; lane++) {
    const uint8_t* row = codes[lane] + column;
    for (int step = 0; step < 4; step++) {
      uint8_t* bytes = tiles + step / steps * kTile + lane * 4;
      for (int j = 0; j < 4; j++) {
        const int code = row[4 * step + j];
        bytes[j] = uint8_t(bytes[j] | (code & ((1 << width) - 1)) << field_shift(bits, step));
        if (bits == 3) put_third(thirds, lane, step, j, code >> 2);
      }
    }
  }
}

inline uint32_t load4(const uint8_t* from) {
  uint32_t value;
  std::memcpy(&value, from, 4);
  return value;
}

inline void store4(uint32_t value, uint8_t* to) { std::memcpy(to, &value, 4); }

// Four bytes of four fields of 2 bits: field j of byte i becomes field i of byte j.
inline uint32_t transposed(uint32_t fields) {
  const uint32_t ones = (fields ^ fields >> 6) & 0x00cc00cc;  // neighbours
  fields ^= ones | ones << 6;
  const uint32_t twos = (fields ^ fields >> 12) & 0x0000f0f0;  // pairs
  return fields ^ (twos | twos << 12);
}

// Bit j of a nibble as the lowest bit of byte j.
inline uint32_t spread(int nibble) { return uint32_t(nibble) * 0x00204081 & 0x01010101; }

// Third bits of 16 columns of a row: `bits`, lowest first. Lanes come in order, and lane 0 to 7 of a byte before the others.
inline void pack_thirds(const uint8_t* bits, int lane, uint8_t* thirds) {
  uint32_t bytes = 0;
  for (int step = 0; step < 4; step++) bytes |= spread(bits[step / 2] >> step % 2 * 4 & 15) << third_shift(lane, step);
  uint8_t* to = thirds + lane % 8 * 4;
  store4(lane < 8 ? bytes : load4(to) | bytes, to);
}

// The same as pack_unit for one row whose 16 columns are all there, without a code by itself: `row` is canonical. No trellis.
inline void pack_whole_unit(const potq_format& format, const uint8_t* row, int column, int lane, uint8_t* tiles,
                            uint8_t* thirds) {
  uint8_t* to = tiles + lane * 4;
  if (format.bits == 8) {
    for (int step = 0; step < 4; step++) store4(load4(row + column + 4 * step), to + step * kTile);
  } else if (format.bits == 4) {
    for (int half = 0; half < 2; half++) {  // bytes 01 23 45 67 become 04 15 26 37
      const uint8_t* from = row + (column + 8 * half) / 2;
      const uint32_t low = uint32_t(from[0] | from[1] << 16), high = uint32_t(from[2] | from[3] << 16);
      const uint32_t even = (low & 0x000f000f) | (high & 0x000f000f) << 4;
      const uint32_t odd = (low >> 4 & 0x000f000f) | (high & 0x00f000f0);
      const uint32_t codes = even | odd << 8;
      store4(codes, to + half * kTile);
    }
  } else {
    const uint32_t steps = transposed(load4(row + column / 4));
    if (format.bits == 2) return store4(steps, to);
    store4((steps & 0xc3c3c3c3) | (steps & 0x0c0c0c0c) << 2 | (steps & 0x30303030) >> 2, to);  // steps 0, 2, 1, 3
    pack_thirds(row + plane_bytes(format, 2) + column / 8, lane, thirds);
  }
}

void pack_row_block(const potq_format& format, const Layout& layout, const uint8_t* packed, int block, uint8_t* tiles) {
  const int bits = tile_bits(format);
  const size_t bytes = row_bytes(format), unit_bytes = size_t(kTile) * size_t(bits == 3 ? 2 : bits) / 2;
  const int units = layout.block / kUnit;
  const bool whole_rows = int64_t(block + 1) * kRows <= format.rows && !format.trellis;
  uint8_t codes[kRows][kMaxBlock];
  for (int b = 0; b < layout.blocks; b++, tiles += layout.block_bytes) {
    const int first = b * layout.block;
    const int count = layout.block < format.columns - first ? layout.block : format.columns - first;
    const int whole = whole_rows ? count / kUnit : 0;
    uint8_t* thirds = tiles + size_t(units) * unit_bytes;
    for (int lane = 0; lane < kRows && whole; lane++) {
      const uint8_t* row = packed + (size_t(block) * kRows + size_t(lane)) * bytes;
      for (int u = 0; u < whole; u++)
        pack_whole_unit(format, row, first + u * kUnit, lane, tiles + size_t(u) * unit_bytes, thirds + u * kThirdsBytes);
    }
    if (whole == units) continue;
    std::memset(codes, 0, sizeof codes);
    for (int lane = 0; lane < kRows; lane++) {
      const int64_t row = int64_t(block) * kRows + lane;
      if (row < format.rows) unpack_row(format, packed + size_t(row) * bytes, first, count, codes[lane]);
    }
    for (int u = whole; u < units; u++)
      pack_unit(bits, codes, u * kUnit, tiles + size_t(u) * unit_bytes, thirds + u * kThirdsBytes);
  }
}

}  // namespace
}  // namespace potq

using namespace potq;

void potq_pack(const potq_format* format, const uint8_t* packed, const void* scale, uint8_t* tiles, int32_t first,
               int32_t last) {
  const Layout layout(*format);
  for (int block = first; block < last; block++) {
    uint8_t* to = tiles + size_t(block) * layout.row_block_bytes;
    pack_scales(*format, layout, scale, block, to);
    pack_row_block(*format, layout, packed, block, to + layout.scales_bytes);
  }
}

void potq_lookup(const potq_format* format, const uint8_t* packed, const void* scale, const int64_t* ids, int64_t first,
                 int64_t last, void* out, int32_t dtype) {
  const Layout layout(*format);
  const float reference = float_of(uint32_t(127 - format->reference_log2) << 23);
  float levels[256];
  for (int code = 0; code < 1 << tile_bits(*format); code++)
    levels[code] = float(format->bits == 8 ? int8_t(code) : format->levels[code]) * reference;
  const int group = layout.groups == 1 ? format->columns : format->group;
  uint8_t codes[kMaxBlock];
  for (int64_t i = first; i < last; i++) {
    const uint8_t* row = packed + size_t(ids[i]) * row_bytes(*format);
    const int64_t scales = format->scale_rows == 1 ? 0 : ids[i] * layout.groups;
    for (int column = 0; column < format->columns; column++) {
      const int at = column % kMaxBlock, left = format->columns - column;
      if (at == 0) unpack_row(*format, row, column, left < kMaxBlock ? left : kMaxBlock, codes);
      const float value = scale_at(*format, scale, scales + column / group) * levels[codes[at]];
      const int64_t index = i * format->columns + column;
      if (dtype == POTQ_FLOAT32)
        static_cast<float*>(out)[index] = value;
      else
        static_cast<uint16_t*>(out)[index] = to_bfloat16(value);
    }
  }
}
