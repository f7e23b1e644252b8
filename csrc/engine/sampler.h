// From logits to a token. The order is Hugging Face's: repetition penalty, temperature, top-k, top-p, min-p, draw.
#pragma once

#include <cstdint>
#include <vector>

#include "engine.h"

namespace potq {
namespace engine {

class Sampler {
 public:
  // Throws an Error if a setting is out of range.
  Sampler(const potq_sampling& settings, int vocabulary);

  void seen(int32_t token);
  // The next token; logits are changed. Throws an Error if they are not finite.
  int32_t choose(float* logits);

 private:
  struct Candidate {
    float logit;
    int32_t token;
  };
  int32_t likeliest(const float* logits) const;
  double uniform();

  const potq_sampling settings_;
  const int vocabulary_;
  uint64_t state_;
  std::vector<uint8_t> seen_;          // by token
  std::vector<int32_t> seen_tokens_;   // each once
  std::vector<Candidate> candidates_;  // room for all
};

}  // namespace engine
}  // namespace potq
