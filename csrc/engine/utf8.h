// UTF-8, one code point at a time. Overlong forms, surrogates and code points beyond U+10FFFF are not UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>

namespace potq {
namespace engine {
namespace {

// Bytes of the code point at the start of `text`; 0 if it is not valid.
inline int decode_utf8(const char* text, size_t size, uint32_t* code) {
  const auto byte = [&](size_t i) { return uint32_t(static_cast<unsigned char>(text[i])); };
  const auto tail = [&](size_t i) { return i < size && (byte(i) & 0xc0) == 0x80; };
  if (!size) return 0;
  const uint32_t first = byte(0);
  if (first < 0x80) return *code = first, 1;
  if (first >= 0xc2 && first < 0xe0 && tail(1)) return *code = (first & 0x1f) << 6 | (byte(1) & 0x3f), 2;
  if (first >= 0xe0 && first < 0xf0 && tail(1) && tail(2)) {
    *code = (first & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f);
    return *code >= 0x800 && (*code < 0xd800 || *code >= 0xe000) ? 3 : 0;
  }
  if (first >= 0xf0 && first < 0xf5 && tail(1) && tail(2) && tail(3)) {
    *code = (first & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f);
    return *code >= 0x10000 && *code <= 0x10ffff ? 4 : 0;
  }
  return 0;
}

// Writes up to 4 bytes; returns how many.
inline int encode_utf8(uint32_t code, char* to) {
  if (code < 0x80) return to[0] = char(code), 1;
  if (code < 0x800) return to[0] = char(0xc0 | code >> 6), to[1] = char(0x80 | (code & 0x3f)), 2;
  if (code < 0x10000) {
    to[0] = char(0xe0 | code >> 12), to[1] = char(0x80 | (code >> 6 & 0x3f)), to[2] = char(0x80 | (code & 0x3f));
    return 3;
  }
  to[0] = char(0xf0 | code >> 18), to[1] = char(0x80 | (code >> 12 & 0x3f));
  to[2] = char(0x80 | (code >> 6 & 0x3f)), to[3] = char(0x80 | (code & 0x3f));
  return 4;
}

}  // namespace
}  // namespace engine
}  // namespace potq
