#include "error.h"

#include <cstdarg>
#include <cstdio>

namespace potq {
namespace engine {

std::string quoted(std::string_view text) {
  constexpr size_t kMost = 120;
  std::string result = "'";
  for (size_t i = 0; i < text.size() && i < kMost; i++) {
    const auto byte = [&](size_t at) { return at < text.size() ? static_cast<unsigned char>(text[at]) : 0; };
    const bool c1 = byte(i) == 0xc2 && byte(i + 1) >= 0x80 && byte(i + 1) < 0xa0;  // U+0080 to U+009F, in UTF-8
    result += byte(i) < 0x20 || byte(i) == 0x7f || c1 ? '?' : text[i];
    i += c1;
  }
  return result + (text.size() > kMost ? "...'" : "'");
}

void fail(const char* format, ...) {
  char text[2048];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  throw Error(text);
}

}  // namespace engine
}  // namespace potq
