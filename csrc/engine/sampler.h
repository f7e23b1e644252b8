// From logits to a token. The order is Hugging Face's: repetition penalty, temperature, top-k, top-p, min-p, draw.
#pragma once

#include <cstdint>
#include <vector>

#include "engine.h"

namespace potq {
namespace engine {

class Sampler {
 public:
  // Both throw an Error if a setting is out of range.
  static void check(const potq_sampling& settings);
  Sampler(const potq_sampling& settings, int vocabulary);

  void seen(int32_t token);
  // The next token, of those `allowed` (a bit for each; null: all); logits are changed. Throws an Error if they are not finite,
  // or no token is allowed.
  int32_t choose(float* logits, const uint8_t* allowed = nullptr);

 private:
  struct Candidate {
    float weight;  // its logit first
    int32_t token;
  };
  int32_t likeliest(const float* logits) const;
  double uniform();
  void sort(size_t count);
  const Candidate& at(size_t rank);

  const potq_sampling settings_;
  const int vocabulary_;
  uint64_t state_;
  std::vector<uint8_t> seen_;          // by token
  std::vector<int32_t> seen_tokens_;   // each once
  std::vector<Candidate> candidates_;  // room for all
  size_t sorted_ = 0;                  // of them
};

}  // namespace engine
}  // namespace potq
