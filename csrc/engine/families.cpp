#include "families.h"

#include <algorithm>
#include <cmath>

#include "../numbers.h"
#include "rope.h"

namespace potq {
namespace engine {
namespace {

constexpr int64_t kMaxLayers = 1024, kMaxExperts = 1 << 14;

// ---- names

constexpr Names llama_names() {
  Names names = {};
  names.embedding = "model.embed_tokens", names.layer = "model.layers.", names.final_norm = "model.norm";
  names.head = "lm_head";
  names.attention_norm = "input_layernorm", names.mlp_norm = "post_attention_layernorm";
  names.q = "self_attn.q_proj", names.k = "self_attn.k_proj", names.v = "self_attn.v_proj", names.o = "self_attn.o_proj";
  names.gate = "mlp.gate_proj", names.up = "mlp.up_proj", names.down = "mlp.down_proj";
  return names;
}
constexpr Names qwen3_names() {
  Names names = llama_names();
  names.q_norm = "self_attn.q_norm", names.k_norm = "self_attn.k_norm";
  return names;
}
constexpr Names olmo2_names() {
  Names names = qwen3_names();
  names.attention_norm = names.mlp_norm = nullptr;
  names.attention_post_norm = "post_attention_layernorm", names.mlp_post_norm = "post_feedforward_layernorm";
  return names;
}
constexpr Names gemma3_names() {
  Names names = olmo2_names();
  names.attention_norm = "input_layernorm", names.mlp_norm = "pre_feedforward_layernorm";
  return names;
}
constexpr Names qwen3_moe_names() {  // OLMoE's too
  Names names = qwen3_names();
  names.router = "mlp.gate", names.experts = names.seen_experts = "mlp.experts.";
  names.expert_gate = "gate_proj", names.expert_up = "up_proj", names.expert_down = "down_proj";
  return names;
}
constexpr Names mixtral_names() {
  Names names = llama_names();
  names.router = "block_sparse_moe.gate", names.experts = "block_sparse_moe.experts.", names.seen_experts = "mlp.experts.";
  names.expert_gate = "w1", names.expert_up = "w3", names.expert_down = "w2";
  return names;
}
constexpr Names phi3_names() {
  Names names = llama_names();
  names.q = names.k = names.v = names.gate = names.up = nullptr;
  names.fused_qkv = "self_attn.qkv_proj", names.fused_gate_up = "mlp.gate_up_proj";
  return names;
}
constexpr Names gpt2_names() {
  Names names = {};
  names.embedding = "transformer.wte", names.positions = "transformer.wpe", names.layer = "transformer.h.";
  names.final_norm = "transformer.ln_f", names.head = "lm_head";
  names.attention_norm = "ln_1", names.mlp_norm = "ln_2";
  names.fused_qkv = "attn.c_attn", names.o = "attn.c_proj", names.up = "mlp.c_fc", names.down = "mlp.c_proj";
  return names;
}
constexpr Names kLlamaNames = llama_names(), kQwen3Names = qwen3_names(), kOlmo2Names = olmo2_names(),
                kGemma3Names = gemma3_names(), kPhi3Names = phi3_names(), kGpt2Names = gpt2_names(),
                kQwen3MoeNames = qwen3_moe_names(), kMixtralNames = mixtral_names();

// ---- what families share

Activation read_activation(const Reader& reader, const char* key, const char* otherwise) {
  const std::string name = reader.text(key, otherwise);
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast") return Activation::kGeluTanh;
  if (name == "gelu") return Activation::kGelu;
  if (name == "relu") return Activation::kRelu;
  fail("%s: %s is %s; the engine knows silu, gelu, gelu_new and relu", reader.file().c_str(), key, quoted(name).c_str());
}

// What transformers takes for keys that config.json leaves out. 0: as many as heads; hidden / heads.
struct Usual {
  int kv_heads = 0, head_size = 0;
  double epsilon = 1e-6;
  bool tied = false;
  const char *activation_key = "hidden_act", *activation = "silu";
};

void read_sizes(const Reader& reader, const Usual& usual, const Names& names, Config* config) {
  config->names = &names;
  config->layers = int(reader.integer("num_hidden_layers", 1, kMaxLayers));
  config->hidden = int(reader.integer("hidden_size", 1, kMaxSize));
  config->heads = int(reader.integer("num_attention_heads", 1, kMaxSize));
  config->kv_heads = int(reader.integer("num_key_value_heads", 1, kMaxSize, usual.kv_heads ? usual.kv_heads : config->heads));
  config->head_size =
      int(reader.integer("head_dim", 1, kMaxSize, usual.head_size ? usual.head_size : config->hidden / config->heads));
  config->intermediate = int(reader.integer("intermediate_size", 1, kMaxSize));
  config->vocabulary = int(reader.integer("vocab_size", 1, kMaxSize));
  config->positions = int(reader.integer("max_position_embeddings", 1, INT32_MAX));
  config->epsilon = float(reader.number("rms_norm_eps", 0, 1, usual.epsilon));
  config->activation = read_activation(reader, usual.activation_key, usual.activation);
  config->tied = reader.flag("tie_word_embeddings", usual.tied);
  config->attention_scale = 1.0f / std::sqrt(float(config->head_size));
  config->window.assign(size_t(config->layers), 0);
  config->rotation.assign(size_t(config->layers), 0);
  config->sparse.assign(size_t(config->layers), 0);
  if (config->head_size < 2 || config->head_size % 2)
    fail("%s: heads of %d numbers cannot be rotated in pairs", reader.file().c_str(), config->head_size);
}

// transformers 5 writes rope_parameters with the theta inside, before that it was rope_theta and rope_scaling
Value rope_of(const Reader& reader) {
  const Value rope = reader.value("rope_parameters");
  return rope.null() ? reader.value("rope_scaling") : rope;
}

double partial_rotary(const Reader& reader) {
  const double outer = reader.number("partial_rotary_factor", 0, 1, 1);
  const Value rope = rope_of(reader);
  return rope.is(Kind::kObject) ? Reader(rope, reader.file()).number("partial_rotary_factor", 0, 1, outer) : outer;
}

// One rotation for all layers, of the whole head.
void read_rotation(const Reader& reader, Config* config, double theta = 10000) {
  if (partial_rotary(reader) != 1) fail("%s: partial_rotary_factor is not supported by the engine", reader.file().c_str());
  theta = reader.number("rope_theta", 1, 1e12, theta);
  config->frequencies = {read_frequencies(reader, rope_of(reader), theta, config->head_size)};
}

void read_biases(const Reader& reader, Config* config) {
  config->qkv_bias = config->o_bias = reader.flag("attention_bias", false);
  config->mlp_bias = reader.flag("mlp_bias", false);
}

// The positions that are seen, 0: all. Absent is `otherwise`, null is all.
int read_window(const Reader& reader, int otherwise) {
  const Value given = reader.value("sliding_window");
  return given && given.null() ? 0 : int(reader.integer("sliding_window", 1, INT32_MAX, otherwise));
}

// Whether layer_types says which layers look back only so far; `windows` gets `size` for those.
bool read_layer_types(const Reader& reader, int size, std::vector<int>* windows) {
  const Value types = reader.value("layer_types");
  if (!types.is(Kind::kArray)) return false;
  if (types.size() != windows->size()) fail("%s: layer_types has not one entry a layer", reader.file().c_str());
  size_t layer = 0;
  for (Value type = types.first(); type; type = type.next(), layer++) {
    const std::string_view name = type.is(Kind::kString) ? type.string() : "";
    if (name != "sliding_attention" && name != "full_attention")
      fail("%s: layer_types has %s; the engine knows full_attention and sliding_attention", reader.file().c_str(),
           quoted(name).c_str());
    (*windows)[layer] = name == "sliding_attention" ? size : 0;
  }
  return true;
}

void refuse(const Reader& reader, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    const Value value = reader.value(key);
    if (!value.null() && !value.is(Kind::kFalse)) fail("%s: %s is not supported by the engine", reader.file().c_str(), key);
  }
}

// ---- families

void read_llama(const Reader& reader, Config* config) {
  read_sizes(reader, {}, kLlamaNames, config);
  read_rotation(reader, config);
  read_biases(reader, config);
}

void read_mistral(const Reader& reader, Config* config) {
  read_sizes(reader, {}, kLlamaNames, config);
  read_rotation(reader, config);
  config->window.assign(size_t(config->layers), read_window(reader, 4096));
}

// Windows of Qwen's layers, if any: by layer_types, or from a layer on.
void read_qwen_windows(const Reader& reader, Config* config) {
  if (!reader.flag("use_sliding_window", false)) return;
  const int size = read_window(reader, 4096);
  if (read_layer_types(reader, size, &config->window)) return;
  const int64_t first = reader.integer("max_window_layers", 0, INT32_MAX, 28);
  for (int layer = 0; layer < config->layers; layer++) config->window[size_t(layer)] = layer >= first ? size : 0;
}

void read_qwen2(const Reader& reader, Config* config) {
  read_sizes(reader, {}, kLlamaNames, config);
  read_rotation(reader, config);
  config->qkv_bias = true;
  read_qwen_windows(reader, config);
}

void read_qwen3(const Reader& reader, Config* config) {
  Usual usual;
  usual.head_size = 128;
  read_sizes(reader, usual, kQwen3Names, config);
  read_rotation(reader, config);
  config->qkv_bias = config->o_bias = reader.flag("attention_bias", false);
  read_qwen_windows(reader, config);
}

// `usual`: what transformers takes for what config.json leaves out. All layers have experts.
void read_mixture(const Reader& reader, const Mixture& usual, const char* intermediate, Config* config) {
  Mixture& m = config->mixture;
  // transformers takes both for the same; which of them it writes depends on the family and its version
  const char* key = reader.value("num_local_experts").null() ? "num_experts" : "num_local_experts";
  m.experts = int(reader.integer(key, 0, kMaxExperts, usual.experts));
  m.chosen = int(reader.integer("num_experts_per_tok", 1, kMaxExperts, usual.chosen));
  m.intermediate = int(reader.integer(intermediate, 1, kMaxSize, usual.intermediate));
  m.normed = usual.normed;
  if (!m.experts) {
    m = {};
    return;
  }
  if (m.chosen > m.experts)
    fail("%s: num_experts_per_tok is %d, but %s is %d", reader.file().c_str(), m.chosen, key, m.experts);
  if (int64_t(m.experts) * std::max(2 * m.intermediate, config->hidden) > INT32_MAX)
    fail("%s: %d experts of %d numbers are too many", reader.file().c_str(), m.experts, m.intermediate);
  config->sparse.assign(size_t(config->layers), 1);
}

// Dense layers among those with experts: all whose number is no multiple of decoder_sparse_step, and mlp_only_layers.
void read_dense_layers(const Reader& reader, Config* config) {
  const int64_t step = reader.integer("decoder_sparse_step", 1, INT32_MAX, 1);
  for (int layer = 0; layer < config->layers; layer++) {
    if ((layer + 1) % step) config->sparse[size_t(layer)] = 0;
  }
  const Value dense = reader.value("mlp_only_layers");
  if (!dense.null() && !dense.is(Kind::kArray)) fail("%s: mlp_only_layers is not a list", reader.file().c_str());
  for (Value layer = dense.null() ? Value() : dense.first(); layer; layer = layer.next()) {
    if (!layer.is(Kind::kInteger) || layer.integer() < 0 || layer.integer() >= config->layers)
      fail("%s: mlp_only_layers has an entry that is no layer in 0..%d", reader.file().c_str(), config->layers - 1);
    config->sparse[size_t(layer.integer())] = 0;
  }
}

// Qwen3 with experts; a window is of all layers.
void read_qwen3_moe(const Reader& reader, Config* config) {
  Usual usual;
  usual.kv_heads = 4;
  read_sizes(reader, usual, kQwen3MoeNames, config);
  read_rotation(reader, config);
  config->qkv_bias = config->o_bias = reader.flag("attention_bias", false);
  if (reader.flag("use_sliding_window", false)) config->window.assign(size_t(config->layers), read_window(reader, 4096));
  read_mixture(reader, {128, 8, 768, reader.flag("norm_topk_prob", false)}, "moe_intermediate_size", config);
  read_dense_layers(reader, config);
}

// OLMo 2's norms of queries and keys in Llama's block, with experts.
void read_olmoe(const Reader& reader, Config* config) {
  Usual usual;
  usual.epsilon = 1e-5;
  refuse(reader, {"clip_qkv"});
  read_sizes(reader, usual, kQwen3MoeNames, config);
  read_rotation(reader, config);
  config->qkv_bias = config->o_bias = reader.flag("attention_bias", false);
  config->whole_norms = true;
  read_mixture(reader, {64, 8, 2048, reader.flag("norm_topk_prob", false)}, "intermediate_size", config);
}

// Mistral with experts.
void read_mixtral(const Reader& reader, Config* config) {
  Usual usual;
  usual.kv_heads = 8, usual.epsilon = 1e-5;
  read_sizes(reader, usual, kMixtralNames, config);
  read_rotation(reader, config, 1000000);
  config->window.assign(size_t(config->layers), read_window(reader, 0));
  read_mixture(reader, {8, 2, 14336, true}, "intermediate_size", config);
}

// Llama, some layers of which do not rotate: zeros in no_rope_layers, or every fourth.
void read_smollm3(const Reader& reader, Config* config) {
  Usual usual;
  usual.kv_heads = 4, usual.tied = true;
  read_sizes(reader, usual, kLlamaNames, config);
  read_rotation(reader, config, 2000000);
  read_biases(reader, config);
  const Value given = reader.value("no_rope_layers");
  const int64_t interval = reader.integer("no_rope_layer_interval", 1, kMaxLayers, 4);
  if (given.is(Kind::kArray) && given.size() != config->rotation.size())
    fail("%s: no_rope_layers has not one entry a layer", reader.file().c_str());
  Value entry = given.is(Kind::kArray) ? given.first() : Value();
  for (int layer = 0; layer < config->layers; layer++) {
    const bool rotates = entry ? entry.is(Kind::kInteger) && entry.integer() : (layer + 1) % interval != 0;
    config->rotation[size_t(layer)] = rotates ? 0 : -1;
    if (entry) entry = entry.next();
  }
  if (!reader.flag("use_sliding_window", false)) return;
  const int size = read_window(reader, 0);
  if (read_layer_types(reader, size, &config->window)) return;
  for (int layer = 0; layer < config->layers; layer++)
    config->window[size_t(layer)] = config->rotation[size_t(layer)] < 0 ? size : 0;
}

// Norms behind attention and MLP, none before; of all query heads together, and of all keys.
void read_olmo2(const Reader& reader, Config* config) {
  Usual usual;
  usual.epsilon = 1e-5;
  read_sizes(reader, usual, kOlmo2Names, config);
  read_rotation(reader, config);
  config->qkv_bias = config->o_bias = reader.flag("attention_bias", false);
  config->whole_norms = true;
}

// Llama with multipliers.
void read_granite(const Reader& reader, Config* config) {
  read_sizes(reader, {}, kLlamaNames, config);
  read_rotation(reader, config);
  read_biases(reader, config);
  config->attention_scale = float(reader.number("attention_multiplier", 1e-6, 1e6, 1));
  config->embedding_scale = float(reader.number("embedding_multiplier", 1e-6, 1e6, 1));
  config->residual_scale = float(reader.number("residual_multiplier", 1e-6, 1e6, 1));
  config->logits_scale = 1.0f / float(reader.number("logits_scaling", 1e-6, 1e6, 1));
}

// Norms before and behind; two rotations, for layers that see a window and for those that see all.
void read_gemma3(const Reader& reader, Config* config) {
  Usual usual;
  usual.head_size = 256, usual.kv_heads = 4, usual.tied = true;
  usual.activation_key = "hidden_activation", usual.activation = "gelu_pytorch_tanh";
  refuse(reader, {"attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"});
  read_sizes(reader, usual, kGemma3Names, config);
  config->qkv_bias = config->o_bias = reader.flag("attention_bias", false);
  config->norm_plus_one = true;
  config->attention_scale = float(1 / std::sqrt(reader.number("query_pre_attn_scalar", 1e-6, 1e6, 256)));
  config->embedding_scale = std::sqrt(float(config->hidden));
  const std::string dtype = reader.text("dtype", reader.text("torch_dtype", "float32").c_str());
  if (dtype == "bfloat16") config->embedding_scale = from_bfloat16(to_bfloat16(config->embedding_scale));
  if (!read_layer_types(reader, read_window(reader, 4096), &config->window)) {
    const int64_t pattern = reader.integer("sliding_window_pattern", 1, kMaxLayers, 6);
    for (int layer = 0; layer < config->layers; layer++)
      config->window[size_t(layer)] = (layer + 1) % pattern ? read_window(reader, 4096) : 0;
  }
  const Value rope = reader.value("rope_parameters");
  const bool by_type = rope.is(Kind::kObject) && rope["full_attention"].is(Kind::kObject);
  const double theta = reader.number("rope_theta", 1, 1e12, 1e6), local = reader.number("rope_local_base_freq", 1, 1e12, 1e4);
  config->frequencies = {
      read_frequencies(reader, by_type ? rope["full_attention"] : reader.value("rope_scaling"), theta, config->head_size),
      read_frequencies(reader, by_type ? rope["sliding_attention"] : Value(), local, config->head_size)};
  for (int layer = 0; layer < config->layers; layer++) config->rotation[size_t(layer)] = config->window[size_t(layer)] ? 1 : 0;
}

// Llama with fused products; the first numbers of a head may be all that turn.
void read_phi3(const Reader& reader, Config* config) {
  Usual usual;
  usual.epsilon = 1e-5;
  read_sizes(reader, usual, kPhi3Names, config);
  const int turned = int(config->head_size * partial_rotary(reader));
  if (turned < 2 || turned % 2) fail("%s: %d numbers of a head cannot turn", reader.file().c_str(), turned);
  const double theta = reader.number("rope_theta", 1, 1e12, 10000);
  config->frequencies = {read_frequencies(reader, rope_of(reader), theta, turned)};
  config->window.assign(size_t(config->layers), read_window(reader, 0));
}

void read_gpt2(const Reader& reader, Config* config) {
  config->names = &kGpt2Names;
  config->rms = false;
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
  config->attention_scale = reader.flag("scale_attn_weights", true) ? 1.0f / std::sqrt(float(config->head_size)) : 1.0f;
  config->window.assign(size_t(config->layers), 0);
  config->rotation.assign(size_t(config->layers), -1);
  config->sparse.assign(size_t(config->layers), 0);
  refuse(reader, {"scale_attn_by_inverse_layer_idx", "add_cross_attention"});
  if (config->hidden % config->heads) fail("%s: n_embd is not a multiple of n_head", reader.file().c_str());
}

struct Family {
  const char* model_type;
  void (*read)(const Reader& reader, Config* config);
};
constexpr Family kFamilies[] = {{"llama", read_llama},     {"qwen2", read_qwen2},         {"qwen3", read_qwen3},
                                {"mistral", read_mistral}, {"smollm3", read_smollm3},     {"olmo2", read_olmo2},
                                {"granite", read_granite}, {"gemma3_text", read_gemma3},  {"phi3", read_phi3},
                                {"gpt2", read_gpt2},       {"qwen3_moe", read_qwen3_moe}, {"olmoe", read_olmoe},
                                {"mixtral", read_mixtral}};

}  // namespace

void read_family(const Reader& reader, Config* config) {
  std::string known;
  for (const Family& family : kFamilies) {
    if (config->model_type == family.model_type) return family.read(reader, config);
    known += (known.empty() ? "" : ", ") + std::string(family.model_type);
  }
  fail("%s: model_type is %s; the engine knows %s (potq runs others through torch)", reader.file().c_str(),
       quoted(config->model_type).c_str(), known.c_str());
}

}  // namespace engine
}  // namespace potq
