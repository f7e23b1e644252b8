// config.json: what a model is, in the terms of one block that serves every family.
//
//   x = embedding[id] (* scale) (+ positions[i])
//   for each layer:   h = norm(x);  q, k, v = h Wq, h Wk, h Wv (or one fused product);  (norm of q and k heads)  (rotation)
//                     x += norm(attention(q, k, v) Wo)
//                     h = norm(x);  x += norm((act(h Wgate) * (h Wup)) Wdown), or act(h Wup) Wdown
//                                   or the same of a few experts that h Wrouter chooses, times their probabilities
//   logits = norm(x) Whead
//
// Each of a layer's norms may be missing. A family is a row of kFamilies (families.cpp): names of tensors and the switches it
// always has. Multipliers are folded into weights when those are loaded (load.cpp), but for the embedding's.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "json.h"

namespace potq {
namespace engine {

constexpr int kMaxHead = 1024;  // numbers of an attention head, at most
constexpr uint64_t kMaxConfigBytes = 4 << 20;
constexpr uint32_t kMaxConfigValues = 1 << 18;

enum class Activation : uint8_t { kSilu, kGeluTanh, kGelu, kRelu };

// Names of a family's tensors; {}.weight and so on follow. Null: the family has no such tensor.
struct Names {
  const char *embedding, *positions, *layer, *final_norm, *head;
  const char *attention_norm, *q, *k, *v, *fused_qkv, *o, *q_norm, *k_norm, *attention_post_norm;
  const char *mlp_norm, *gate, *up, *fused_gate_up, *down, *mlp_post_norm;
  const char *router, *experts, *seen_experts;        // seen: what patterns of a quantization config call the experts
  const char *expert_gate, *expert_up, *expert_down;  // behind an expert's number
};

// Layers whose MLP is several experts, of which each token takes some.
struct Mixture {
  int experts = 0, chosen = 0, intermediate = 0;  // intermediate: of one expert
  bool normed = false;                            // the probabilities of those that are chosen are made to add up to 1
};

struct Config {
  const Names* names = nullptr;
  std::string model_type;
  int layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_size = 0, intermediate = 0, vocabulary = 0, positions = 0;
  bool rms = true, transposed = false;  // transposed: GPT-2's Conv1D keeps (in, out) where unquantized
  bool qkv_bias = false, o_bias = false, mlp_bias = false, tied = false;
  bool norm_plus_one = false;  // norms multiply by 1 + weight
  bool whole_norms = false;    // q_norm and k_norm are of all heads together
  float epsilon = 0, attention_scale = 1, embedding_scale = 1, residual_scale = 1, logits_scale = 1;
  Activation activation = Activation::kSilu;
  Mixture mixture;
  std::vector<uint8_t> sparse;                  // by layer: whether it has experts
  std::vector<int> window;                      // by layer: positions that are seen, 0: all
  std::vector<std::vector<float>> frequencies;  // of rotations: angles a position, for half of the numbers that turn
  std::vector<int> rotation;                    // by layer: which of them, -1: none
  std::vector<int32_t> end_ids;

  int query_size() const { return heads * head_size; }
  int kv_size() const { return kv_heads * head_size; }
  void check_ids(const int32_t* ids, int count) const;  // throws an Error if one is outside the vocabulary
};

// Throws an Error if the folder holds an adapter (LoRA), alone or beside its base: transformers would apply it, the engine
// cannot.
void refuse_adapter(const std::string& folder);
// Both throw an Error that names the key, what it should be and what was found.
Config read_config(const Document& document);
// generation_config.json, whose end tokens, if it has any, stand for config.json's, as in Hugging Face's generate().
void read_generation_config(const Document& document, Config* config);

}  // namespace engine
}  // namespace potq
