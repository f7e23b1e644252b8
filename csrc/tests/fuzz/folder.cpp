// A model folder of arbitrary contents: opened, and if that works, run.
//
//   flags --- config.json --- generation_config.json --- header of model.safetensors --- data
//
// Bits of the first byte: 1 full float arithmetic; 2 the data is as long as it is; 4 the tensors are in a shard. The header's
// length is put before it, and the data repeated until all tensors are there: inputs stay small, and a mutated header gets far.
#include <algorithm>
#include <string>

#include "../../engine/engine.h"
#include "../../engine/error.h"
#include "../../engine/json.h"
#include "../scratch.h"
#include "parts.h"

using potq::engine::Document;
using potq::engine::Error;
using potq::engine::Kind;
using potq::engine::Value;

namespace {

constexpr int64_t kMostData = 1 << 20;

// Where the last tensor ends, as far as that can be told and is no absurd size.
size_t data_bytes(std::string_view header) try {
  const Document document("header", std::string(header), 1 << 16);
  int64_t bytes = 0;
  for (Value entry = document.root().is(Kind::kObject) ? document.root().first() : Value(); entry; entry = entry.next()) {
    const Value offsets = entry["data_offsets"];
    if (!offsets.is(Kind::kArray) || offsets.size() != 2) continue;
    const Value end = offsets.first().next();
    if (end.is(Kind::kInteger) && end.integer() <= kMostData) bytes = std::max(bytes, end.integer());
  }
  return size_t(bytes);
} catch (const Error&) {
  return 0;
}

std::string safetensors(std::string_view header, std::string_view data, bool as_it_is) {
  std::string file;
  for (int i = 0; i < 8; i++) file.push_back(char(uint64_t(header.size()) >> 8 * i & 255));
  file += header;
  const size_t bytes = as_it_is || data.empty() ? data.size() : data_bytes(header);
  for (size_t i = 0; i < bytes; i++) file.push_back(data[i % data.size()]);
  return file;
}

void run(potq_engine* engine) {
  potq_engine_facts facts;
  potq_engine_describe(engine, &facts);
  const int32_t ids[] = {0, facts.vocabulary - 1, facts.vocabulary / 2};
  const int32_t count = std::min(3, facts.context);
  const potq_sampling sampling = {1, 0.9f, 0.01f, 1.1f, 20, 1};
  potq_engine_append(engine, ids, count, nullptr, 0, nullptr, 0);
  potq_engine_truncate(engine, 0);
  int32_t token;
  if (potq_engine_start(engine, ids, count, &sampling, nullptr, 0, nullptr, 0) < 0) return;
  for (int i = 0; i < 4; i++) potq_engine_next(engine, &token, nullptr, 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const ScratchFolder folder;
  std::string_view rest = view(data, size);
  const std::string_view flags = take_part(&rest), config = take_part(&rest), generation = take_part(&rest),
                         header = take_part(&rest);
  const int bits = flags.empty() ? 0 : flags[0];
  const std::string path = folder.path() + "/";
  write_file(path + "config.json", config.data(), config.size());
  if (!generation.empty()) write_file(path + "generation_config.json", generation.data(), generation.size());
  write_file(path + (bits & 4 ? "shard.safetensors" : "model.safetensors"), safetensors(header, rest, bits & 2));
  if (bits & 4) write_file(path + "model.safetensors.index.json", R"({"weight_map": {"a": "shard.safetensors"}})");

  const potq_engine_options options = {1, 0, bits & 1 ? POTQ_FLOAT : POTQ_INT8, -1};
  char message[256];
  if (potq_engine* engine = potq_engine_open(folder.path().c_str(), &options, message, sizeof message)) {
    run(engine);
    potq_engine_close(engine);
  }
  if (!generation.empty()) remove_file(path + "generation_config.json");
  if (bits & 4) remove_file(path + "model.safetensors.index.json");
  return 0;
}
