// An arbitrary tokenizer on an arbitrary text:   tokenizer.json --- text
#include <string>
#include <vector>

#include "../../engine/engine.h"
#include "../scratch.h"
#include "parts.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const ScratchFolder folder;
  static const std::string path = folder.path() + "/tokenizer.json";
  std::string_view text = view(data, size);
  const std::string_view json = take_part(&text);
  write_file(path, json.data(), json.size());
  char message[256];
  potq_tokenizer* tokenizer = potq_tokenizer_open(path.c_str(), message, sizeof message);
  if (!tokenizer) return 0;
  std::vector<int32_t> ids(64);
  for (const int32_t special : {0, 1}) {
    const int64_t count =
        potq_tokenizer_encode(tokenizer, text.data(), text.size(), special, ids.data(), ids.size(), message, sizeof message);
    for (int64_t i = 0; i < count && i < int64_t(ids.size()); i++) {
      size_t bytes;
      const char* from = potq_tokenizer_bytes(tokenizer, ids[size_t(i)], &bytes);
      if (ids[size_t(i)] < 0 || (bytes && std::string(from, bytes).size() != bytes)) __builtin_trap();
    }
  }
  potq_tokenizer_close(tokenizer);
  return 0;
}
