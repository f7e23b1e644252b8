// Look-up of a row in tiles: an embedding that is the head as well is kept in one layout.
#include "../numbers.h"
#include "../potq.h"
#include "layout.h"

namespace potq {
namespace {

// Code of one of the 16 rows in a block of columns; `column` counts from the block's first.
inline int tile_code(const Layout& layout, int bits, const uint8_t* block, int lane, int column) {
  const int step = column / 4, at = lane * 4 + column % 4;
  const int width = bits == 3 ? 2 : bits, per_byte = 8 / width;  // steps of 4 columns that share a tile
  const int low = block[step / per_byte * kTile + at] >> field_shift(bits, step % 4) & ((1 << width) - 1);
  if (bits != 3) return low;
  const uint8_t* thirds = block + layout.block / kUnit * kTile + step / 4 * kThirdsBytes;
  return low | (thirds[at % kThirdsBytes] >> third_shift(lane, step % 4) & 1) << 2;
}

}  // namespace
}  // namespace potq

using namespace potq;

void potq_lookup_tiles(const potq_format* format, const uint8_t* tiles, int64_t row, float* out) {
  const Layout layout(*format);
  const float reference = float_of(uint32_t(127 - format->reference_log2) << 23);
  const uint8_t* row_block = tiles + size_t(row / kRows) * layout.row_block_bytes;
  const int lane = int(row % kRows);
  for (int b = 0; b < layout.blocks; b++) {
    const size_t group = size_t(b / layout.blocks_per_group);
    const size_t entry = group * kRows + size_t(lane);
    const float scale = format->scale_format == POTQ_SCALE_FLOAT16
                            ? from_float16(reinterpret_cast<const uint16_t*>(row_block)[entry])
                            : from_e8m0(row_block[entry]);
    const uint8_t* block = row_block + layout.scales_bytes + size_t(b) * layout.block_bytes;
    const int first = b * layout.block;
    for (int k = 0; k < layout.block && first + k < format->columns; k++) {
      const int code = tile_code(layout, tile_bits(*format), block, lane, k);
      const int level = format->bits == 8 ? int8_t(code) : format->levels[code];
      out[first + k] = scale * (float(level) * reference);
    }
  }
}
