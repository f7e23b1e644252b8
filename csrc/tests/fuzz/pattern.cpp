// An arbitrary pattern against an arbitrary name:   pattern --- name
#include "../../engine/pattern.h"

#include "../../engine/error.h"
#include "parts.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view name = view(data, size);
  const std::string_view pattern = take_part(&name);
  try {
    potq::engine::Pattern(pattern, "fuzzer").matches(name.substr(0, 256));
  } catch (const potq::engine::Error&) {
  }
  return 0;
}
