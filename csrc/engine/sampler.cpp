#include "sampler.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace potq {
namespace engine {
namespace {

// An infinity or NaN anywhere shows in a sum of zeros. In lanes, which a compiler makes vectors of.
bool finite(const float* x, int count) {
  constexpr int kLanes = 16;
  float sums[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int k = 0; k < kLanes; k++) sums[k] += x[i + k] * 0.0f;
  }
  for (int k = 0; i < count; i++, k++) sums[k] += x[i] * 0.0f;
  return std::all_of(sums, sums + kLanes, [](float sum) { return sum == 0; });
}

}  // namespace

void Sampler::check(const potq_sampling& settings) {
  const auto expect = [](bool good, const char* what) {
    if (!good) throw Error(what);
  };
  expect(settings.temperature >= 0 && settings.temperature <= 100, "temperature is not in 0..100");
  expect(settings.top_p >= 0 && settings.top_p <= 1, "top_p is not in 0..1");
  expect(settings.min_p >= 0 && settings.min_p <= 1, "min_p is not in 0..1");
  expect(settings.top_k >= 0, "top_k is negative");
  expect(settings.repetition_penalty > 0 && settings.repetition_penalty <= 100,
         "repetition_penalty is not in 0..100 (0 excluded)");
}

Sampler::Sampler(const potq_sampling& settings, int vocabulary)
    : settings_(settings), vocabulary_(vocabulary), state_(settings.seed), seen_(size_t(vocabulary), 0) {
  check(settings);
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

int32_t Sampler::choose(float* logits, const uint8_t* allowed) {
  if (!finite(logits, vocabulary_))
    fail("the model's outputs are not finite; its weights are damaged, or not fit for these activations");
  for (int i = 0; allowed && i < vocabulary_; i++) {
    if (!(allowed[i / 8] >> i % 8 & 1)) logits[i] = -INFINITY;
  }
  if (settings_.repetition_penalty != 1) {
    for (const int32_t token : seen_tokens_) {
      float& logit = logits[token];
      logit = logit < 0 ? logit * settings_.repetition_penalty : logit / settings_.repetition_penalty;
    }
  }
  const int32_t best = likeliest(logits);
  if (logits[best] == -INFINITY) fail("the mask allows no token at all");
  if (settings_.temperature == 0) return best;

  const float most = logits[best];
  candidates_.clear();
  const float least = settings_.min_p > 0 ? most + std::log(settings_.min_p) * settings_.temperature : -INFINITY;
  const bool cuts_first = settings_.top_k == 0 && settings_.top_p == 1;  // min-p alone: the same set in any order
  for (int i = 0; i < vocabulary_; i++) {
    if ((!cuts_first || logits[i] >= least) && logits[i] != -INFINITY) candidates_.push_back({logits[i], i});
  }
  sorted_ = 0;
  if (settings_.top_k > 0 && size_t(settings_.top_k) < candidates_.size()) {
    sort(size_t(settings_.top_k));
    candidates_.resize(sorted_);
  }
  double total = 0;
  for (Candidate& candidate : candidates_) {
    candidate.weight = float(std::exp(double(candidate.weight - most) / double(settings_.temperature)));
    total += double(candidate.weight);
  }
  if (settings_.top_p < 1) {  // the fewest that reach top_p
    double reached = 0;
    size_t kept = 0;
    while (kept < candidates_.size() && reached < double(settings_.top_p) * total) reached += double(at(kept++).weight);
    candidates_.resize(std::max<size_t>(kept, 1));
    sorted_ = std::min(sorted_, candidates_.size());
  }
  const auto unlikely = [&](const Candidate& candidate) { return candidate.weight < settings_.min_p; };  // the best weighs 1
  candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(), unlikely), candidates_.end());
  sorted_ = std::min(sorted_, candidates_.size());  // all or none are
  total = 0;
  for (const Candidate& candidate : candidates_) total += double(candidate.weight);
  double point = uniform() * total;
  for (size_t i = 0; i < candidates_.size(); i++) {
    point -= double(at(i).weight);
    if (point < 0) return candidates_[i].token;
  }
  return candidates_.back().token;
}

// Brings the likeliest `count` candidates to the front, in order; equal ones by token, so that the order is one.
void Sampler::sort(size_t count) {
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
  };
  const auto from = candidates_.begin() + ptrdiff_t(sorted_), to = candidates_.begin() + ptrdiff_t(count);
  if (to != candidates_.end()) std::nth_element(from, to, candidates_.end(), before);
  std::sort(from, to, before);
  sorted_ = count;
}

// The candidate with so many likelier ones. A draw seldom gets far: sorting all takes longer than all else.
const Sampler::Candidate& Sampler::at(size_t rank) {
  if (rank >= sorted_) sort(std::min(candidates_.size(), std::max<size_t>(64, 4 * sorted_)));
  return candidates_[rank];
}

}  // namespace engine
}  // namespace potq
