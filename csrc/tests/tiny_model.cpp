#include "tiny_model.h"

#include <string_view>
#include <utility>
#include <vector>

#include "scratch.h"
#include "splitmix.h"

namespace tiny {
namespace {

struct Kind {
  const char* name;
  const char* dtype;  // null: quantized
  int bits;
  const char* grid;
  bool trellis = false;
};
constexpr Kind kKinds[kWeights] = {
    {"F32", "F32", 32, ""},
    {"F16", "F16", 16, ""},
    {"BF16", "BF16", 16, ""},
    {"pot2", nullptr, 2, R"("encoding": "sign-magnitude", "magnitudes": [1, 4])"},
    {"pot3", nullptr, 3, R"("encoding": "sign-magnitude", "magnitudes": [0, 1, 2, 4])"},
    {"table3", nullptr, 3, R"("encoding": "table", "table": [-9, -4, -2, -1, 1, 3, 5, 8])"},
    {"pot4", nullptr, 4, R"("encoding": "sign-magnitude", "magnitudes": [0, 1, 2, 4, 8, 16, 32, 64])"},
    {"int4", nullptr, 4, R"("encoding": "twos-complement")"},
    {"pot6", nullptr, 6,
     R"("encoding": "sign-magnitude", "magnitudes": [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384,
     32768, 65536, 131072, 262144, 524288, 1048576, 2097152, 4194304, 8388608, 16777216, 33554432, 67108864, 134217728,
     268435456, 536870912, 1073741824])"},
    {"int8", nullptr, 8, R"("encoding": "twos-complement")"},
    {"pot2t", nullptr, 3, R"("encoding": "sign-magnitude", "magnitudes": [1, 2, 4, 8])", true},
};
constexpr const char* kFamilyNames[kFamilies] = {"llama", "qwen2", "qwen3", "mistral", "gpt2", "qwen3_moe"};

void put(std::string* data, uint32_t value, int bytes) {
  for (int i = 0; i < bytes; i++) data->push_back(char(value >> 8 * i & 255));
}

// Collects tensors, and writes them as safetensors.
class Tensors {
 public:
  explicit Tensors(const Model& model) : model_(model), random_(model.seed) {}

  void norm(const std::string& name, int count) {
    std::string data;
    for (int i = 0; i < count; i++) put(&data, 0x3f000000 | (draw() & 0xffffff), 4);  // 0.5 to 2
    add(name, "F32", {count}, data);
  }

  // A matrix that no scheme quantizes.
  void floats(const std::string& name, int rows, int columns) {
    std::string data;
    for (int64_t i = 0; i < int64_t(rows) * columns; i++) put(&data, number("F32"), 4);
    add(name + ".weight", "F32", {rows, columns}, data);
  }

  // A linear layer or an embedding, in linear orientation; `stored_transposed`: GPT-2's, where it is not quantized.
  void matrix(const std::string& name, int rows, int columns, bool stored_transposed = false) {
    const Kind& kind = kKinds[model_.weights];
    if (!kind.dtype) return packed(name, rows, columns);
    if (stored_transposed) std::swap(rows, columns);
    std::string data;
    for (int64_t i = 0; i < int64_t(rows) * columns; i++) put(&data, number(kind.dtype), kind.bits / 8);
    add(name + ".weight", kind.dtype, {rows, columns}, data);
  }

  void bias(const std::string& name, int count) {
    std::string data;
    for (int i = 0; i < count; i++) put(&data, number("F32"), 4);
    add(name + ".bias", "F32", {count}, data);
  }

  std::string file() const {
    std::string result;
    const std::string header = "{" + header_ + "}";
    put(&result, uint32_t(header.size()), 4), put(&result, 0, 4);
    return result + header + data_;
  }

 private:
  // Magnitudes from 2^-6 to 2^-3.
  uint32_t number(std::string_view dtype) {
    const uint32_t random = draw(), sign = random >> 31, exponent = random >> 29 & 3, mantissa = random & 0x7fffff;
    if (dtype == "F16") return sign << 15 | (9 + exponent) << 10 | mantissa >> 13;
    if (dtype == "BF16") return sign << 15 | (121 + exponent) << 7 | mantissa >> 16;
    return sign << 31 | (121 + exponent) << 23 | mantissa;
  }

  // Every code is one of the grid's, so that bits are bits.
  void plane(int columns, int width, std::string* data) {
    const int bytes = (columns * width + 7) / 8, used = columns * width % 8;
    for (int i = 0; i < bytes; i++) put(data, draw() & (i + 1 == bytes && used ? (1u << used) - 1 : 255), 1);
  }

  void packed(const std::string& name, int rows, int columns) {
    const int bits = kKinds[model_.weights].bits - kKinds[model_.weights].trellis;
    const int first = bits == 8 ? 8 : bits >= 4 ? 4 : 2;
    const int group = model_.group && model_.group < columns ? model_.group : columns, groups = (columns + group - 1) / group;
    std::string codes, scales, row_scales;
    for (int row = 0; row < rows; row++) {
      plane(columns, first, &codes);
      for (int width = first; width < bits; width++) plane(columns, 1, &codes);
      for (int i = 0; i < groups; i++) {
        if (model_.e8m0)
          put(&scales, 120 + (draw() & 3), 1);
        else
          put(&scales, 0x2000 | (draw() & 0x7ff), 2);  // 2^-7 to 2^-5
      }
      put(&row_scales, 0x3800 | (draw() & 0x7ff), 2);  // 0.5 to 2
    }
    add(name + ".weight_packed", "U8", {rows, int(codes.size()) / rows}, codes);
    add(name + ".weight_scale", model_.e8m0 ? "U8" : "F16", {rows, groups}, scales);
    if (model_.row_scale) add(name + ".weight_row_scale", "F16", {rows, 1}, row_scales);
  }

  void add(const std::string& name, const char* dtype, const std::vector<int>& shape, const std::string& data) {
    std::string sizes;
    for (const int size : shape) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
    header_ += (header_.empty() ? "\"" : ", \"") + name + R"(": {"dtype": ")" + dtype + R"(", "shape": [)" + sizes +
               R"(], "data_offsets": [)" + std::to_string(data_.size()) + ", " + std::to_string(data_.size() + data.size()) +
               "]}";
    data_ += data;
  }

  uint32_t draw() { return uint32_t(random_.next() >> 32); }

  const Model& model_;
  SplitMix random_;
  std::string header_, data_;
};

void add_gpt2(const Model& m, Tensors* tensors) {
  const auto linear = [&](const std::string& name, int rows, int columns) {
    tensors->matrix(name, rows, columns, true);
    tensors->bias(name, rows);
  };
  const auto norm = [&](const std::string& name) {
    tensors->norm(name + ".weight", m.hidden);
    tensors->bias(name, m.hidden);
  };
  tensors->matrix("transformer.wte", m.vocabulary, m.hidden);
  tensors->matrix("transformer.wpe", m.positions, m.hidden);
  for (int i = 0; i < m.layers; i++) {
    const std::string layer = "transformer.h." + std::to_string(i) + ".";
    norm(layer + "ln_1");
    linear(layer + "attn.c_attn", 3 * m.hidden, m.hidden);
    linear(layer + "attn.c_proj", m.hidden, m.hidden);
    norm(layer + "ln_2");
    linear(layer + "mlp.c_fc", m.intermediate, m.hidden);
    linear(layer + "mlp.c_proj", m.hidden, m.intermediate);
  }
  norm("transformer.ln_f");
}

void add_mlp(const std::string& prefix, int intermediate, int hidden, Tensors* tensors) {
  tensors->matrix(prefix + "gate_proj", intermediate, hidden);
  tensors->matrix(prefix + "up_proj", intermediate, hidden);
  tensors->matrix(prefix + "down_proj", hidden, intermediate);
}

// Packed ones are stacks.
void add_experts(const Model& m, const std::string& prefix, Tensors* tensors) {
  tensors->floats(prefix + "gate", m.experts, m.hidden);
  if (!kKinds[m.weights].dtype) {
    tensors->matrix(prefix + "experts.stacked_gate_up_proj", 2 * m.experts * m.expert_intermediate, m.hidden);
    tensors->matrix(prefix + "experts.stacked_down_proj", m.experts * m.hidden, m.expert_intermediate);
    return;
  }
  for (int i = 0; i < m.experts; i++)
    add_mlp(prefix + "experts." + std::to_string(i) + ".", m.expert_intermediate, m.hidden, tensors);
}

void add_llama(const Model& m, Tensors* tensors) {
  const bool qkv_bias = m.family == kQwen2 || (m.biased && m.family != kMistral);
  const auto linear = [&](const std::string& name, int rows, int columns, bool biased) {
    tensors->matrix(name, rows, columns);
    if (biased) tensors->bias(name, rows);
  };
  const int q = m.heads * m.head_size, kv = m.kv_heads * m.head_size;
  tensors->matrix("model.embed_tokens", m.vocabulary, m.hidden);
  for (int i = 0; i < m.layers; i++) {
    const std::string layer = "model.layers." + std::to_string(i) + ".", attention = layer + "self_attn.";
    tensors->norm(layer + "input_layernorm.weight", m.hidden);
    linear(attention + "q_proj", q, m.hidden, qkv_bias);
    linear(attention + "k_proj", kv, m.hidden, qkv_bias);
    linear(attention + "v_proj", kv, m.hidden, qkv_bias);
    linear(attention + "o_proj", m.hidden, q, qkv_bias && m.family != kQwen2);
    const bool head_norms = m.family == kQwen3 || m.family == kQwen3Moe;
    if (head_norms) tensors->norm(attention + "q_norm.weight", m.head_size);
    if (head_norms) tensors->norm(attention + "k_norm.weight", m.head_size);
    tensors->norm(layer + "post_attention_layernorm.weight", m.hidden);
    if (m.family == kQwen3Moe && i != 1)
      add_experts(m, layer + "mlp.", tensors);
    else
      add_mlp(layer + "mlp.", m.intermediate, m.hidden, tensors);
  }
  tensors->norm("model.norm.weight", m.hidden);
}

class Object {
 public:
  void raw(const char* key, const std::string& value) {
    text_ += (text_.empty() ? "\"" : ", \"") + std::string(key) + "\": " + value;
  }
  void number(const char* key, int value) { raw(key, std::to_string(value)); }
  void text(const char* key, const char* value) { raw(key, '"' + std::string(value) + '"'); }
  void flag(const char* key, bool value) { raw(key, value ? "true" : "false"); }
  std::string str() const { return "{" + text_ + "}"; }

 private:
  std::string text_;
};

std::string quantization(const Model& m) {
  const Kind& kind = kKinds[m.weights];
  Object scheme, result;
  scheme.raw("grid", R"({"bits": )" + std::to_string(kind.bits) + ", " + kind.grid + "}");
  scheme.raw("group_size", m.group ? std::to_string(m.group) : "\"row\"");
  scheme.text("scale_dtype", m.e8m0 ? "e8m0" : "float16");
  scheme.flag("row_scale", m.row_scale);
  scheme.flag("trellis", kind.trellis);
  result.text("quant_method", "potq");
  result.number("version", 1);
  result.raw("scheme", scheme.str());
  result.raw("embedding", scheme.str());
  return result.str();
}

std::string config(const Model& m) {
  const bool gpt2 = m.family == kGpt2;
  Object result;
  result.text("model_type", kFamilyNames[m.family]);
  result.number(gpt2 ? "n_layer" : "num_hidden_layers", m.layers);
  result.number(gpt2 ? "n_embd" : "hidden_size", m.hidden);
  result.number(gpt2 ? "n_head" : "num_attention_heads", m.heads);
  result.number(gpt2 ? "n_inner" : "intermediate_size", m.intermediate);
  result.number(gpt2 ? "n_positions" : "max_position_embeddings", m.positions);
  result.number("vocab_size", m.vocabulary);
  result.flag("tie_word_embeddings", m.tied);
  if (!gpt2) {
    result.number("num_key_value_heads", m.kv_heads);
    result.number("head_dim", m.head_size);
    result.flag("attention_bias", m.biased);
  }
  if (m.family == kQwen3Moe) {
    result.number("num_experts", m.experts);
    result.number("num_experts_per_tok", m.chosen);
    result.number("moe_intermediate_size", m.expert_intermediate);
    result.flag("norm_topk_prob", m.biased);
    result.raw("mlp_only_layers", m.layers > 1 ? "[1]" : "[]");
  }
  if (m.family == kMistral) result.raw("sliding_window", m.window ? std::to_string(m.window) : "null");
  if (!kKinds[m.weights].dtype) result.raw("quantization_config", quantization(m));
  return result.str();
}

}  // namespace

const char* name(Family family) { return kFamilyNames[family]; }
const char* name(Weights weights) { return kKinds[weights].name; }

void write(const Model& model, const std::string& folder) {
  Tensors tensors(model);
  if (model.family == kGpt2)
    add_gpt2(model, &tensors);
  else
    add_llama(model, &tensors);
  if (!model.tied) tensors.matrix("lm_head", model.vocabulary, model.hidden);
  write_file(folder + "/config.json", config(model));
  write_file(folder + "/model.safetensors", tensors.file());
}

}  // namespace tiny
