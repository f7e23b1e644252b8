#include "rope.h"

#include <cmath>

namespace potq {
namespace engine {
namespace {

// As transformers computes them: in float32, base^(2i/d) first.
std::vector<float> plain_frequencies(int head_size, float theta) {
  std::vector<float> result;
  for (int i = 0; i < head_size; i += 2) result.push_back(1.0f / std::pow(theta, float(i) / float(head_size)));
  return result;
}

// Llama 3: long waves are stretched by `factor`, short ones stay, those between are blended.
void stretch_llama3(const Reader& rope, std::vector<float>* frequencies) {
  const float factor = float(rope.number("factor", 1e-3, 1e6, 1)),
              old = float(rope.number("original_max_position_embeddings", 1, 1e9, 8192));
  const float low = float(rope.number("low_freq_factor", 1e-6, 1e6, 1)),
              high = float(rope.number("high_freq_factor", 1e-6, 1e6, 4));
  if (!(high > low)) fail("%s: rope: high_freq_factor is not above low_freq_factor", rope.file().c_str());
  for (float& frequency : *frequencies) {
    const float wave = 2 * float(M_PI) / frequency;
    if (wave > old / low) {
      frequency /= factor;
    } else if (!(wave < old / high)) {
      const float smooth = (old / wave - low) / (high - low);
      frequency = (1 - smooth) * frequency / factor + smooth * frequency;
    }
  }
}

}  // namespace

std::vector<float> read_frequencies(const Reader& reader, const Value& rope, double theta, int count) {
  if (!rope.null() && !rope.is(Kind::kObject)) fail("%s: rope_parameters is not an object", reader.file().c_str());
  const Reader inner(rope, reader.file());
  const std::string type = inner.text("rope_type", inner.text("type", "default").c_str());
  std::vector<float> result = plain_frequencies(count, float(inner.number("rope_theta", 1, 1e12, theta)));
  if (type == "linear") {
    const float factor = float(inner.number("factor", 1e-3, 1e6, 1));
    for (float& frequency : result) frequency /= factor;
  } else if (type == "llama3") {
    stretch_llama3(inner, &result);
  } else if (type != "default") {
    fail("%s: rope type %s is not supported by the engine; it knows default, linear and llama3", reader.file().c_str(),
         quoted(type).c_str());
  }
  return result;
}

}  // namespace engine
}  // namespace potq
