// How likely tokens are: log softmax of a row of logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "engine.h"

namespace potq {
namespace engine {

// The logarithm of the sum of all exponentials.
inline double log_total(const float* logits, int count) {
  const float most = *std::max_element(logits, logits + count);
  double total = 0;
  for (int i = 0; i < count; i++) total += double(std::exp(logits[i] - most));
  return double(most) + std::log(total);
}

// Appends the token, and the `tops` likeliest; of equal ones the lower id is first.
inline void add_logprobs(const float* logits, int count, int32_t token, int tops, std::vector<potq_logprob>* to) {
  const double total = log_total(logits, count);
  const auto entry = [&](int32_t id) { return potq_logprob{id, float(double(logits[id]) - total)}; };
  std::vector<int32_t> best;  // likeliest first
  best.reserve(size_t(tops) + 1);
  for (int32_t id = 0; id < count; id++) {
    if (int(best.size()) == tops && !(logits[id] > logits[best.back()])) continue;
    const auto after = [&](float logit, int32_t other) { return logit > logits[other]; };
    best.insert(std::upper_bound(best.begin(), best.end(), logits[id], after), id);
    if (int(best.size()) > tops) best.pop_back();
  }
  to->push_back(entry(token));
  for (const int32_t id : best) to->push_back(entry(id));
}

}  // namespace engine
}  // namespace potq
