#include "error.h"

#include <cstdarg>
#include <cstdio>

namespace potq {
namespace engine {

std::string quoted(std::string_view text) {
  constexpr size_t kMost = 120;
  std::string result = "'";
  for (size_t i = 0; i < text.size() && i < kMost; i++) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    result += c < 0x20 || c == 0x7f ? '?' : char(c);
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
