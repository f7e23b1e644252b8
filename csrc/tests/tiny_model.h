// Small model folders with random weights, of any family, shape and scheme: what the engine's tests open, without Python.
#pragma once

#include <cstdint>
#include <string>

namespace tiny {

enum Family { kLlama, kQwen2, kQwen3, kMistral, kGpt2, kQwen3Moe, kFamilies };
enum Weights { kFloat32, kFloat16, kBFloat16, kPot2, kPot3, kTable3, kPot4, kInt4, kPot6, kInt8, kPot2t, kWeights };

struct Model {
  Family family = kLlama;
  Weights weights = kPot4;
  int layers = 2, hidden = 64, heads = 4, kv_heads = 2, head_size = 16;  // GPT-2: kv_heads = heads, hidden = heads * head_size
  int intermediate = 96, vocabulary = 300, positions = 64;
  int experts = 5, chosen = 2, expert_intermediate = 40;  // Qwen3-MoE: of all layers but the second
  int group = 32;                                         // columns that share a scale; 0: a row
  int window = 0;                                         // Mistral: positions that are seen, 0: all
  bool e8m0 = false, row_scale = false;                   // not kPot2t
  bool tied = true, biased = false;
  uint64_t seed = 1;
};

const char* name(Family family);
const char* name(Weights weights);

// config.json and model.safetensors.
void write(const Model& model, const std::string& folder);

}  // namespace tiny
