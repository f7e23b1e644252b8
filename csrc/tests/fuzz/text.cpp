// An arbitrary text through a sound tokenizer of each kind: its tokens' bytes are the text. The first byte chooses the kind.
#include <array>
#include <string>
#include <vector>

#include "../../engine/engine.h"
#include "../scratch.h"
#include "../tiny_tokenizer.h"
#include "parts.h"

namespace {

// Llama 3's pattern, or with `digits` empty Qwen's, in a pre-tokenizer.
std::string split(const std::string& digits) {
  return R"({"type": "Split", "behavior": "Isolated", "pattern": {"Regex":
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N})" +
         digits + R"(| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}})";
}

// A pre-tokenizer, then ByteLevel.
std::string behind(const std::string& first, bool regex) {
  return R"({"type": "Sequence", "pretokenizers": [)" + first +
         R"(, {"type": "ByteLevel", "add_prefix_space": false, "use_regex": )" + (regex ? "true" : "false") + "}]}";
}

const std::string kKinds[] = {
    R"({"type": "ByteLevel", "add_prefix_space": false})",
    behind(split("{1,3}"), false),
    behind(split(""), false),
    behind(R"({"type": "Digits", "individual_digits": true})", true),
    behind(R"({"type": "Digits", "individual_digits": false})", true),
};
constexpr size_t kCount = sizeof kKinds / sizeof *kKinds;

std::array<potq_tokenizer*, kCount> open_all() {
  const ScratchFolder folder;
  const std::string path = folder.path() + "/tokenizer.json";
  std::array<potq_tokenizer*, kCount> result;
  for (size_t i = 0; i < kCount; i++) {
    write_file(path, tiny_tokenizer(kKinds[i]));
    result[i] = potq_tokenizer_open(path.c_str(), nullptr, 0);
    if (!result[i]) __builtin_trap();
  }
  return result;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::array<potq_tokenizer*, kCount> tokenizers = open_all();
  if (!size) return 0;
  const potq_tokenizer* tokenizer = tokenizers[data[0] % kCount];
  const std::string_view text = view(data + 1, size - 1);
  if (text.find("<end>") != std::string_view::npos) return 0;  // a special token has no bytes
  std::vector<int32_t> ids(text.size());
  const int64_t count = potq_tokenizer_encode(tokenizer, text.data(), text.size(), 1, ids.data(), ids.size(), nullptr, 0);
  if (count < 0) return 0;  // no UTF-8
  std::string again;
  for (int64_t i = 0; i < count; i++) {
    size_t bytes;
    const char* from = potq_tokenizer_bytes(tokenizer, ids[size_t(i)], &bytes);
    again.append(from, bytes);
  }
  if (again != text) __builtin_trap();
  return 0;
}
