// Canonical rows to tiles, and look-up of canonical rows.
#include <cstring>

#include "layout.h"
#include "numbers.h"
#include "potq.h"

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

// Codes of a canonical row, one a byte.
void unpack_row(const potq_format& format, const uint8_t* row, int first, int count, uint8_t* codes) {
  for (int i = 0; i < count; i++) codes[i] = uint8_t(code_at(format, row, first + i));
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

// 16 columns of 16 rows; codes[row][column].
void pack_unit(int bits, const uint8_t (*codes)[kMaxBlock], int column, uint8_t* tiles, uint8_t* thirds) {
  const int width = bits == 3 ? 2 : bits, steps = 8 / width;  // steps of 4 columns in a tile
  for (int lane = 0; lane < kRows; lane++) {
    const uint8_t* row = codes[lane] + column;
    for (int step = 0; step < 4; step++) {
      uint8_t* bytes = tiles + step / steps * kTile + lane * 4;
      for (int j = 0; j < 4; j++) {
        const int code = row[4 * step + j] & ((1 << width) - 1);
        bytes[j] = uint8_t((step % steps ? bytes[j] : 0) | code << (step % steps * width));
      }
      if (bits != 3) continue;
      int nibble = 0;
      for (int j = 0; j < 4; j++) nibble |= (row[4 * step + j] >> 2 & 1) << j;
      uint8_t* third = thirds + 8 * step + lane / 2;
      *third = uint8_t(lane % 2 ? *third | nibble << 4 : nibble);
    }
  }
}

void pack_row_block(const potq_format& format, const Layout& layout, const uint8_t* packed, int block, uint8_t* tiles) {
  const size_t bytes = row_bytes(format);
  const int width = format.bits == 3 ? 2 : format.bits, units = layout.block / kUnit;
  uint8_t codes[kRows][kMaxBlock];
  for (int b = 0; b < layout.blocks; b++, tiles += layout.block_bytes) {
    const int first = b * layout.block;
    const int count = layout.block < format.columns - first ? layout.block : format.columns - first;
    std::memset(codes, 0, sizeof codes);
    for (int lane = 0; lane < kRows; lane++) {
      const int64_t row = int64_t(block) * kRows + lane;
      if (row < format.rows) unpack_row(format, packed + size_t(row) * bytes, first, count, codes[lane]);
    }
    uint8_t* thirds = tiles + size_t(units) * kTile * size_t(width) / 2;
    for (int u = 0; u < units; u++)
      pack_unit(format.bits, codes, u * kUnit, tiles + size_t(u) * kTile * size_t(width) / 2, thirds + u * 32);
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
  for (int code = 0; code < 1 << format->bits; code++)
    levels[code] = float(format->bits == 8 ? int8_t(code) : format->levels[code]) * reference;
  const int group = layout.groups == 1 ? format->columns : format->group;
  for (int64_t i = first; i < last; i++) {
    const uint8_t* row = packed + size_t(ids[i]) * row_bytes(*format);
    const int64_t scales = format->scale_rows == 1 ? 0 : ids[i] * layout.groups;
    for (int column = 0; column < format->columns; column++) {
      const float value = scale_at(*format, scale, scales + column / group) * levels[code_at(*format, row, column)];
      const int64_t index = i * format->columns + column;
      if (dtype == POTQ_FLOAT32)
        static_cast<float*>(out)[index] = value;
      else
        static_cast<uint16_t*>(out)[index] = to_bfloat16(value);
    }
  }
}
