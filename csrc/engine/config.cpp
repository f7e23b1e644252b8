#include "config.h"

#include <cmath>
#include <cstring>

#include "error.h"
#include "file.h"

namespace potq {
namespace engine {
namespace {

constexpr int64_t kMaxSize = 1 << 22;  // of any dimension; tensors must have them, so a file bounds them further
constexpr int64_t kMaxLayers = 1024;

constexpr Names kLlamaNames = {"model.embed_tokens",
                               nullptr,
                               "model.layers.",
                               "model.norm",
                               "lm_head",
                               "input_layernorm",
                               "self_attn.q_proj",
                               "self_attn.k_proj",
                               "self_attn.v_proj",
                               nullptr,
                               "self_attn.o_proj",
                               nullptr,
                               nullptr,
                               "post_attention_layernorm",
                               "mlp.gate_proj",
                               "mlp.up_proj",
                               "mlp.down_proj"};
constexpr Names with_head_norms(Names names, const char* q_norm, const char* k_norm) {
  names.q_norm = q_norm, names.k_norm = k_norm;
  return names;
}
constexpr Names kQwen3Names = with_head_norms(kLlamaNames, "self_attn.q_norm", "self_attn.k_norm");
constexpr Names kGpt2Names = {
    "transformer.wte", "transformer.wpe", "transformer.h.", "transformer.ln_f", "lm_head", "ln_1",  nullptr,
    nullptr,           nullptr,           "attn.c_attn",    "attn.c_proj",      nullptr,   nullptr, "ln_2",
    nullptr,           "mlp.c_fc",        "mlp.c_proj"};

// Typed look-ups, with the key in every message.
class Reader {
 public:
  Reader(const Value& object, const std::string& file) : object_(object), file_(file) {}

  int64_t integer(const char* key, int64_t least, int64_t most) const {
    const Value value = object_[key];
    if (value.null()) fail("%s has no %s; it is incomplete, copy it again", file_.c_str(), key);
    return checked(value, key, least, most);
  }
  int64_t integer(const char* key, int64_t least, int64_t most, int64_t otherwise) const {
    const Value value = object_[key];
    return value.null() ? otherwise : checked(value, key, least, most);
  }
  double number(const char* key, double least, double most, double otherwise) const {
    const Value value = object_[key];
    if (value.null()) return otherwise;
    if (!(value.is(Kind::kInteger) || value.is(Kind::kNumber)) || !(value.number() >= least && value.number() <= most))
      fail("%s: %s is not a number in %g..%g", file_.c_str(), key, least, most);
    return value.number();
  }
  bool flag(const char* key, bool otherwise) const {
    const Value value = object_[key];
    if (value.null()) return otherwise;
    if (!value.is(Kind::kTrue) && !value.is(Kind::kFalse)) fail("%s: %s is neither true nor false", file_.c_str(), key);
    return value.is(Kind::kTrue);
  }
  std::string text(const char* key, const char* otherwise) const {
    const Value value = object_[key];
    if (value.null()) return otherwise;
    if (!value.is(Kind::kString)) fail("%s: %s is not a string", file_.c_str(), key);
    return std::string(value.string());
  }
  Value value(const char* key) const { return object_[key]; }
  const std::string& file() const { return file_; }

 private:
  int64_t checked(const Value& value, const char* key, int64_t least, int64_t most) const {
    if (!value.is(Kind::kInteger) || value.integer() < least || value.integer() > most)
      fail("%s: %s is not an integer in %lld..%lld", file_.c_str(), key, static_cast<long long>(least),
           static_cast<long long>(most));
    return value.integer();
  }
  const Value object_;
  const std::string& file_;
};

Reader reader_of(const Document& document) {
  if (!document.root().is(Kind::kObject)) fail("%s holds no JSON object; copy it again", document.file().c_str());
  return Reader(document.root(), document.file());
}

Activation read_activation(const Reader& reader, const char* key, const char* otherwise) {
  const std::string name = reader.text(key, otherwise);
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast") return Activation::kGeluTanh;
  if (name == "gelu") return Activation::kGelu;
  if (name == "relu") return Activation::kRelu;
  fail("%s: %s is %s; the engine knows silu, gelu, gelu_new and relu", reader.file().c_str(), key, quoted(name).c_str());
}

// As transformers computes them: in float32, base^(2i/d) first.
std::vector<float> plain_frequencies(int head_size, float theta) {
  std::vector<float> result;
  for (int i = 0; i < head_size; i += 2) result.push_back(1.0f / std::pow(theta, float(i) / float(head_size)));
  return result;
}

// Llama 3: long waves are stretched by `factor`, short ones stay, those between are blended.
void stretch_llama3(const Reader& rope, std::vector<float>* frequencies) {
  const float factor = float(rope.number("factor", 1e-3, 1e6, 1)),
              old = float(rope.number("original_max_position_embeddings", 1, 1e9, 8192));
  const float low = float(rope.number("low_freq_factor", 1e-6, 1e6, 1)),
              high = float(rope.number("high_freq_factor", 1e-6, 1e6, 4));
  if (!(high > low)) fail("%s: rope: high_freq_factor is not above low_freq_factor", rope.file().c_str());
  for (float& frequency : *frequencies) {
    const float wave = 2 * float(M_PI) / frequency;
    if (wave > old / low) {
      frequency /= factor;
    } else if (!(wave < old / high)) {
      const float smooth = (old / wave - low) / (high - low);
      frequency = (1 - smooth) * frequency / factor + smooth * frequency;
    }
  }
}

std::vector<float> read_frequencies(const Reader& reader, int head_size) {
  // transformers 5 writes rope_parameters with the theta inside, before that it was rope_theta and rope_scaling
  Value rope = reader.value("rope_parameters");
  if (rope.null()) rope = reader.value("rope_scaling");
  if (!rope.null() && !rope.is(Kind::kObject)) fail("%s: rope_parameters is not an object", reader.file().c_str());
  const Reader inner(rope, reader.file());
  const double theta = inner.number("rope_theta", 1, 1e12, reader.number("rope_theta", 1, 1e12, 10000));
  const std::string type = inner.text("rope_type", inner.text("type", "default").c_str());
  if (inner.number("partial_rotary_factor", 0, 1, reader.number("partial_rotary_factor", 0, 1, 1)) != 1)
    fail("%s: partial_rotary_factor is not supported by the engine", reader.file().c_str());
  std::vector<float> result = plain_frequencies(head_size, float(theta));
  if (type == "linear") {
    const float factor = float(inner.number("factor", 1e-3, 1e6, 1));
    for (float& frequency : result) frequency /= factor;
  } else if (type == "llama3") {
    stretch_llama3(inner, &result);
  } else if (type != "default") {
    fail("%s: rope type %s is not supported by the engine; it knows default, linear and llama3", reader.file().c_str(),
         quoted(type).c_str());
  }
  return result;
}

// Which layers look back only so far.
std::vector<int> read_windows(const Reader& reader, const Config& config) {
  std::vector<int> windows(size_t(config.layers), 0);
  const bool mistral = config.model_type == "mistral";
  if (config.model_type == "llama" || (!mistral && !reader.flag("use_sliding_window", false))) return windows;
  // absent is transformers' default, null is none
  const Value given = reader.value("sliding_window");
  const int size = given && given.null() ? 0 : int(reader.integer("sliding_window", 1, INT32_MAX, 4096));
  const Value types = reader.value("layer_types");
  if (!mistral && types.is(Kind::kArray)) {
    if (types.size() != windows.size()) fail("%s: layer_types has not one entry a layer", reader.file().c_str());
    size_t layer = 0;
    for (Value type = types.first(); type; type = type.next(), layer++) {
      const std::string_view name = type.is(Kind::kString) ? type.string() : "";
      if (name != "sliding_attention" && name != "full_attention")
        fail("%s: layer_types has %s; the engine knows full_attention and sliding_attention", reader.file().c_str(),
             quoted(name).c_str());
      windows[layer] = name == "sliding_attention" ? size : 0;
    }
    return windows;
  }
  const int64_t first = mistral ? 0 : reader.integer("max_window_layers", 0, INT32_MAX, 28);
  for (size_t layer = 0; layer < windows.size(); layer++) windows[layer] = int64_t(layer) >= first ? size : 0;
  return windows;
}

void read_llama_family(const Reader& reader, Config* config) {
  const bool qwen2 = config->model_type == "qwen2", qwen3 = config->model_type == "qwen3";
  config->names = qwen3 ? &kQwen3Names : &kLlamaNames;
  config->layers = int(reader.integer("num_hidden_layers", 1, kMaxLayers));
  config->hidden = int(reader.integer("hidden_size", 1, kMaxSize));
  config->heads = int(reader.integer("num_attention_heads", 1, kMaxSize));
  config->kv_heads = int(reader.integer("num_key_value_heads", 1, kMaxSize, config->heads));
  config->head_size = int(reader.integer("head_dim", 1, kMaxSize, qwen3 ? 128 : config->hidden / config->heads));
  config->intermediate = int(reader.integer("intermediate_size", 1, kMaxSize));
  config->vocabulary = int(reader.integer("vocab_size", 1, kMaxSize));
  config->positions = int(reader.integer("max_position_embeddings", 1, INT32_MAX));
  config->epsilon = float(reader.number("rms_norm_eps", 0, 1, 1e-6));
  config->activation = read_activation(reader, "hidden_act", "silu");
  config->tied = reader.flag("tie_word_embeddings", false);
  const bool biased = config->model_type != "mistral" && reader.flag("attention_bias", false);
  config->qkv_bias = biased || qwen2;
  config->o_bias = biased && !qwen2;
  config->mlp_bias = config->model_type == "llama" && reader.flag("mlp_bias", false);
  if (config->head_size < 2 || config->head_size % 2)
    fail("%s: heads of %d numbers cannot be rotated in pairs", reader.file().c_str(), config->head_size);
  config->inverse_frequencies = read_frequencies(reader, config->head_size);
  config->window = read_windows(reader, *config);
}

void read_gpt2(const Reader& reader, Config* config) {
  config->names = &kGpt2Names;
  config->rms = config->rotary = false;
  config->transposed = true;
  config->qkv_bias = config->o_bias = config->mlp_bias = true;
  config->layers = int(reader.integer("n_layer", 1, kMaxLayers));
  config->hidden = int(reader.integer("n_embd", 1, kMaxSize));
  config->heads = config->kv_heads = int(reader.integer("n_head", 1, kMaxSize));
  config->head_size = config->hidden / config->heads;
  config->intermediate = int(reader.integer("n_inner", 1, kMaxSize, 4 * int64_t(config->hidden)));
  config->vocabulary = int(reader.integer("vocab_size", 1, kMaxSize));
  config->positions = int(reader.integer("n_positions", 1, kMaxSize));
  config->epsilon = float(reader.number("layer_norm_epsilon", 0, 1, 1e-5));
  config->activation = read_activation(reader, "activation_function", "gelu_new");
  config->tied = reader.flag("tie_word_embeddings", true);
  config->scaled_attention = reader.flag("scale_attn_weights", true);
  config->window.assign(size_t(config->layers), 0);
  for (const char* key : {"scale_attn_by_inverse_layer_idx", "add_cross_attention"}) {
    if (reader.flag(key, false)) fail("%s: %s is not supported by the engine", reader.file().c_str(), key);
  }
  if (config->hidden % config->heads) fail("%s: n_embd is not a multiple of n_head", reader.file().c_str());
}

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
  if (config.model_type == "gpt2") {
    read_gpt2(reader, &config);
  } else if (config.model_type == "llama" || config.model_type == "qwen2" || config.model_type == "qwen3" ||
             config.model_type == "mistral") {
    read_llama_family(reader, &config);
  } else {
    fail("%s: model_type is %s; the engine knows llama, qwen2, qwen3, mistral and gpt2 (potq runs others through torch)",
         document.file().c_str(), quoted(config.model_type).c_str());
  }
  if (config.heads % config.kv_heads)
    fail("%s: %d heads cannot share %d key-value heads", document.file().c_str(), config.heads, config.kv_heads);
  if (config.head_size > kMaxHead || int64_t(config.heads) * config.head_size > kMaxSize)
    fail("%s: %d heads of %d numbers are too many", document.file().c_str(), config.heads, config.head_size);
  read_end_ids(reader, &config);
  return config;
}

}  // namespace engine
}  // namespace potq
