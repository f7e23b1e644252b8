#include "tiny_tokenizer.h"

namespace {

// How a vocabulary writes a byte: as the code point itself if it can be seen, else as one of U+0100, U+0101, ...
std::string shown(int byte) {
  const auto visible = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
  int code = byte;
  if (!visible(byte)) {
    code = 0x100;
    for (int b = 0; b < byte; b++) code += !visible(b);
  }
  if (code < 0x80) return byte == '"' || byte == '\\' ? std::string("\\") + char(byte) : std::string(1, char(byte));
  return {char(0xc0 | code >> 6), char(0x80 | (code & 0x3f))};
}

}  // namespace

std::string tiny_tokenizer(const std::string& pre_tokenizer) {
  std::string vocabulary, merges;
  for (int byte = 0; byte < 256; byte++) vocabulary += '"' + shown(byte) + "\": " + std::to_string(byte) + ", ";
  int id = 256;
  for (const char a : std::string("etaoinsh")) {
    for (const char b : std::string("rtnse")) {
      vocabulary += std::string("\"") + a + b + "\": " + std::to_string(id++) + ", ";
      merges += std::string("\"") + a + " " + b + "\", ";
    }
  }
  for (const std::string space : {"Ġt", "Ġth", "Ġthe"}) {
    vocabulary += '"' + space + "\": " + std::to_string(id++) + ", ";
    merges += '"' + space.substr(0, space.size() - 1) + " " + space.back() + "\", ";
  }
  vocabulary += "\"<end>\": " + std::to_string(id);
  merges.resize(merges.size() - 2);
  return R"({"added_tokens": [{"id": )" + std::to_string(id) + R"(, "content": "<end>", "special": true}], "normalizer": null,
"pre_tokenizer": )" +
         pre_tokenizer + R"(, "model": {"type": "BPE", "vocab": {)" + vocabulary + R"(}, "merges": [)" + merges + "]}}";
}
