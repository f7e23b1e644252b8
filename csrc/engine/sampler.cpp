#include "sampler.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace potq {
namespace engine {

Sampler::Sampler(const potq_sampling& settings, int vocabulary)
    : settings_(settings), vocabulary_(vocabulary), state_(settings.seed), seen_(size_t(vocabulary), 0) {
  const auto check = [](bool good, const char* what) {
    if (!good) throw Error(what);
  };
  check(settings.temperature >= 0 && settings.temperature <= 100, "temperature is not in 0..100");
  check(settings.top_p >= 0 && settings.top_p <= 1, "top_p is not in 0..1");
  check(settings.min_p >= 0 && settings.min_p <= 1, "min_p is not in 0..1");
  check(settings.top_k >= 0, "top_k is negative");
  check(settings.repetition_penalty > 0 && settings.repetition_penalty <= 100,
        "repetition_penalty is not in 0..100 (0 excluded)");
  if (settings.temperature > 0) candidates_.reserve(size_t(vocabulary));
  seen_tokens_.reserve(size_t(vocabulary));
}

void Sampler::seen(int32_t token) {
  if (seen_[size_t(token)]) return;
  seen_[size_t(token)] = 1;
  seen_tokens_.push_back(token);
}

// splitmix64: 53 bits of it are a number in [0, 1).
double Sampler::uniform() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return double((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

int32_t Sampler::likeliest(const float* logits) const {
  return int32_t(std::max_element(logits, logits + vocabulary_) - logits);
}

int32_t Sampler::choose(float* logits) {
  float sum = 0;  // an infinity or NaN anywhere shows in it
  for (int i = 0; i < vocabulary_; i++) sum += logits[i] * 0.0f;
  if (!(sum == 0)) fail("the model's outputs are not finite; its weights are damaged, or not fit for these activations");
  if (settings_.repetition_penalty != 1) {
    for (const int32_t token : seen_tokens_) {
      float& logit = logits[token];
      logit = logit < 0 ? logit * settings_.repetition_penalty : logit / settings_.repetition_penalty;
    }
  }
  if (settings_.temperature == 0) return likeliest(logits);

  // candidates, likeliest first; equal ones by token, so that the order is one
  const float most = logits[likeliest(logits)];
  candidates_.clear();
  const float least = settings_.min_p > 0 ? most + std::log(settings_.min_p) * settings_.temperature : -INFINITY;
  const bool cuts_first = settings_.top_k == 0 && settings_.top_p == 1;  // min-p alone: the same set in any order
  for (int i = 0; i < vocabulary_; i++) {
    if (!cuts_first || logits[i] >= least) candidates_.push_back({logits[i], i});
  }
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  if (settings_.top_k > 0 && size_t(settings_.top_k) < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + settings_.top_k, candidates_.end(), before);
    candidates_.resize(size_t(settings_.top_k));
  }
  std::sort(candidates_.begin(), candidates_.end(), before);

  double total = 0;
  for (Candidate& candidate : candidates_) {
    const float logit = candidate.logit;
    candidate.logit = float(std::exp(double(logit - most) / double(settings_.temperature)));
    total += double(candidate.logit);
  }
  if (settings_.top_p < 1) {  // the fewest that reach top_p
    double reached = 0;
    size_t kept = 0;
    while (kept < candidates_.size() && reached < double(settings_.top_p) * total) reached += double(candidates_[kept++].logit);
    candidates_.resize(std::max<size_t>(kept, 1));
  }
  if (settings_.min_p > 0) {
    while (candidates_.size() > 1 && candidates_.back().logit < settings_.min_p) candidates_.pop_back();
  }
  total = 0;
  for (const Candidate& candidate : candidates_) total += double(candidate.logit);
  double point = uniform() * total;
  for (const Candidate& candidate : candidates_) {
    point -= double(candidate.logit);
    if (point < 0) return candidate.token;
  }
  return candidates_.back().token;
}

}  // namespace engine
}  // namespace potq
