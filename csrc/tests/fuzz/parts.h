// An input of several files in one: parts behind each other, with lines of three dashes between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

// Cuts the first part off; the last one is what remains.
inline std::string_view take_part(std::string_view* input) {
  constexpr std::string_view kBorder = "\n---\n";
  const size_t end = input->find(kBorder);
  const std::string_view part = input->substr(0, end);
  input->remove_prefix(end == std::string_view::npos ? input->size() : end + kBorder.size());
  return part;
}

inline std::string_view view(const uint8_t* data, size_t size) {
  return std::string_view(reinterpret_cast<const char*>(data), size);
}

// The fuzzer's entry: libFuzzer calls it, and replay.cpp.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
