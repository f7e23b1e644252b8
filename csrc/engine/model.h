// A model in memory: config.h's block, with its weights ready for products.
#pragma once

#include <string>
#include <vector>

#include "config.h"
#include "matrix.h"
#include "memory.h"
#include "pool.h"

namespace potq {
namespace engine {

struct Norm {
  std::vector<float> weight, bias;  // bias: layer norm; both empty: none
};

struct Experts {
  Matrix router;                       // floats
  std::vector<Matrix> gate, up, down;  // one an expert; those of one kind are alike in all but their numbers
};

struct Layer {
  Norm attention_norm, attention_post_norm, mlp_norm, mlp_post_norm;
  std::vector<float> q_norm, k_norm;  // or empty
  std::vector<Matrix> qkv;            // q, k, v, or all in one
  Matrix o, up, down;
  std::vector<Matrix> gate;  // one, or none
  Experts experts;           // none, or in place of the MLP's up, down and gate
};

struct Model {
  Config config;
  Matrix embedding;
  std::vector<Matrix> positions, own_head;  // one or none
  std::vector<Layer> layers;
  Norm final_norm;
  Memory weights;

  const Matrix& head() const { return own_head.empty() ? embedding : own_head[0]; }
};

// Reads a model folder. Every tensor that config.json asks for must be there in its shape, and no other.
Model load_model(const std::string& folder, Pool& pool);

}  // namespace engine
}  // namespace potq
