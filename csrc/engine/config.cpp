#include "config.h"

#include "config_reader.h"
#include "error.h"
#include "families.h"
#include "file.h"

namespace potq {
namespace engine {
namespace {

void read_end_ids(const Reader& reader, Config* config) {
  const Value ids = reader.value("eos_token_id");
  if (!ids.null()) config->end_ids.clear();
  const auto add = [&](const Value& id) {
    if (!id.is(Kind::kInteger) || id.integer() < 0 || id.integer() > INT32_MAX)
      fail("%s: eos_token_id is not a token id", reader.file().c_str());
    config->end_ids.push_back(int32_t(id.integer()));
  };
  if (ids.is(Kind::kArray)) {
    for (Value id = ids.first(); id; id = id.next()) add(id);
  } else if (!ids.null()) {
    add(ids);
  }
}

}  // namespace

void Config::check_ids(const int32_t* ids, int count) const {
  for (int i = 0; i < count; i++) {
    if (ids[i] < 0 || ids[i] >= vocabulary)
      fail("token %d (number %d) is outside the vocabulary of %d; the tokenizer is another model's", ids[i], i, vocabulary);
  }
}

void refuse_adapter(const std::string& folder) {
  const std::string file = folder + "/adapter_config.json";
  if (!exists(file)) return;
  const Document document(file, read_text(file, kMaxConfigBytes), kMaxConfigValues);
  const std::string base = reader_of(document).text("base_model_name_or_path", "unknown");
  fail(
      "%s is of an adapter (LoRA) for the model %s; merge it into that with peft (merge_and_unload, then save_pretrained), and "
      "give the merged folder",
      file.c_str(), quoted(base).c_str());
}

void read_generation_config(const Document& document, Config* config) { read_end_ids(reader_of(document), config); }

Config read_config(const Document& document) {
  const Reader reader = reader_of(document);
  Config config;
  config.model_type = reader.text("model_type", "");
  read_family(reader, &config);
  if (config.heads % config.kv_heads)
    fail("%s: %d heads cannot share %d key-value heads", document.file().c_str(), config.heads, config.kv_heads);
  if (config.head_size > kMaxHead || int64_t(config.heads) * config.head_size > kMaxSize)
    fail("%s: %d heads of %d numbers are too many", document.file().c_str(), config.heads, config.head_size);
  read_end_ids(reader, &config);
  return config;
}

}  // namespace engine
}  // namespace potq
