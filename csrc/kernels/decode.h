// Codes to levels, in registers: byte shuffles that look up a 16-entry table (the same work for every grid).
//
// A table holds level + offset, where the offset is what the instruction set's dot product wants (V::offset); sums begin at
// -offset times the sum of the activations, which takes it out again, exactly.
#pragma once

#include "basics.h"

namespace potq {
namespace {

// The levels of 2^bits codes, repeated as often as 16 entries allow, as a dot product takes them.
struct LevelTable {
  int8_t at[16];
  LevelTable(const int8_t* levels, int bits, int offset) {
    for (int i = 0; i < 16; i++) at[i] = int8_t(levels[i & ((1 << bits) - 1)] + offset);
  }
};

// Levels of 8 columns of V::kLanes rows, as 2 vectors of 4 columns each: columns 8 * half + 0..7 of a unit, whose codes begin
// at `tiles` and `thirds`, of strip `part` of its row block. (Half a unit, because 8 columns of two strips of rows are what
// the registers have room for.)
template <class V, int Bits>
struct Decoder;

template <class V>
struct Decoder<V, 4> {
  static constexpr int kUnitBytes = 128;
  typename V::Table table;
  Decoder(const int8_t* levels, int offset) : table(V::table(LevelTable(levels, 4, offset).at)) {}
  POTQ_INLINE void operator()(const uint8_t* tiles, const uint8_t*, int, int half, typename V::Bytes* out) const {
    const typename V::Bytes codes = V::load(tiles + half * kTile);
    out[0] = V::lookup(table, V::low(codes));
    out[1] = V::lookup(table, V::high(codes));
  }
};

// A nibble holds two codes of 2 bits: one table looks at the lower, another at the upper, and no bits need to be cut out.
template <class V>
struct Decoder<V, 2> {
  static constexpr int kUnitBytes = 64;
  typename V::Table lower, upper;
  Decoder(const int8_t* levels, int offset) {
    int8_t doubled[16];
    for (int i = 0; i < 16; i++) doubled[i] = int8_t(levels[i >> 2] + offset);
    lower = V::table(LevelTable(levels, 2, offset).at), upper = V::table(doubled);
  }
  POTQ_INLINE void operator()(const uint8_t* tiles, const uint8_t*, int, int half, typename V::Bytes* out) const {
    const typename V::Bytes codes = V::load(tiles), nibbles = half ? V::high(codes) : V::low(codes);
    out[0] = V::lookup(lower, nibbles);
    out[1] = V::lookup(upper, nibbles);
  }
};

// Two codes of 3 bits are merged into a byte, one a nibble, from the plane of 2 bits and the plane of third bits.
template <class V>
struct Decoder<V, 3> {
  static constexpr int kUnitBytes = 64;
  typename V::Table table;
  Decoder(const int8_t* levels, int offset) : table(V::table(LevelTable(levels, 3, offset).at)) {}
  POTQ_INLINE void operator()(const uint8_t* tiles, const uint8_t* thirds, int part, int half, typename V::Bytes* out) const {
    const typename V::Bytes pairs = V::load(tiles);
    const typename V::Bytes codes = V::merge(half ? V::shift_two(pairs) : pairs, V::thirds(thirds, part, half));
    out[0] = V::lookup_lower(table, codes);
    out[1] = V::lookup_upper(table, codes);
  }
};

template <class V>
struct Decoder<V, 8> {
  static constexpr int kUnitBytes = 256;
  typename V::Bytes offset;
  Decoder(const int8_t*, int offset) : offset(V::bytes(int8_t(offset))) {}
  POTQ_INLINE void operator()(const uint8_t* tiles, const uint8_t*, int, int half, typename V::Bytes* out) const {
    out[0] = V::plus(V::load(tiles + 2 * half * kTile), offset);
    out[1] = V::plus(V::load(tiles + (2 * half + 1) * kTile), offset);
  }
};

// Levels that have been decoded before, laid as codes of 8 bits.
constexpr int kDecoded = 0;
template <class V>
struct Decoder<V, kDecoded> {
  static constexpr int kUnitBytes = 256;
  Decoder(const int8_t*, int) {}
  POTQ_INLINE void operator()(const uint8_t* tiles, const uint8_t*, int, int half, typename V::Bytes* out) const {
    out[0] = V::load(tiles + 2 * half * kTile);
    out[1] = V::load(tiles + (2 * half + 1) * kTile);
  }
};

// The codes of one block of columns, for R strips of V::kLanes rows: a row block is one strip (AVX-512), two or four.
struct Codes {
  const uint8_t *tiles, *thirds;
  int units;
  size_t row_block_bytes;

  template <class V, int Bits>
  POTQ_INLINE void decode(const Decoder<V, Bits>& decoder, int strip, int unit, int half, typename V::Bytes* out) const {
    constexpr int kParts = kRows / V::kLanes;
    const size_t row_block = size_t(strip / kParts) * row_block_bytes;
    const uint8_t* from = tiles + row_block + size_t(unit) * Decoder<V, Bits>::kUnitBytes;
    decoder(from + strip % kParts * V::kLanes * 4, thirds + row_block + unit * kThirdsBytes, strip % kParts, half, out);
  }
};

}  // namespace
}  // namespace potq
