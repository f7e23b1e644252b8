// A sound model of arbitrary shape: it must open, and give the same bits however its tokens are cut, and on every instruction
// set. The input's bytes are its dimensions.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../engine/engine.h"
#include "../scratch.h"
#include "../tiny_model.h"
#include "parts.h"

namespace {

// The next byte, as a number in [least, most].
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  int take(int least, int most) { return least + (size_ ? (size_--, *data_++) : 0) % (most - least + 1); }
  bool flag() { return take(0, 1); }

 private:
  const uint8_t* data_;
  size_t size_;
};

tiny::Model model_of(Bytes* bytes) {
  tiny::Model m;
  m.family = tiny::Family(bytes->take(0, tiny::kFamilies - 1));
  m.weights = tiny::Weights(bytes->take(0, tiny::kWeights - 1));
  const bool gpt2 = m.family == tiny::kGpt2;
  m.layers = bytes->take(1, 2);
  m.kv_heads = bytes->take(1, 5);
  m.heads = m.kv_heads * (gpt2 ? 1 : bytes->take(1, 3));
  m.head_size = gpt2 ? bytes->take(1, 40) : 2 * bytes->take(1, 40);
  m.hidden = gpt2 ? m.heads * m.head_size : bytes->take(1, 130);
  m.intermediate = bytes->take(1, 130);
  m.vocabulary = bytes->take(1, 70);
  m.positions = bytes->take(1, 40);
  m.group = bytes->take(0, 150);
  m.window = bytes->take(0, 40);
  m.e8m0 = bytes->flag() && m.weights != tiny::kPot2t, m.row_scale = m.e8m0 && bytes->flag(), m.tied = bytes->flag(),
  m.biased = bytes->flag();
  m.seed = uint64_t(bytes->take(0, 255));
  m.experts = bytes->take(1, 9), m.chosen = bytes->take(1, m.experts), m.expert_intermediate = bytes->take(1, 70);
  return m;
}

[[noreturn]] void wrong(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

// Logits of all tokens, appended `step` at a time.
std::vector<float> logits(potq_engine* engine, const std::vector<int32_t>& ids, int32_t step) {
  potq_engine_facts facts;
  potq_engine_describe(engine, &facts);
  std::vector<float> result(ids.size() * size_t(facts.vocabulary));
  char message[2048];
  potq_engine_truncate(engine, 0);
  for (int32_t first = 0; first < int32_t(ids.size()); first += step) {
    const int32_t count = std::min(step, int32_t(ids.size()) - first);
    float* to = result.data() + size_t(first) * size_t(facts.vocabulary);
    if (potq_engine_append(engine, ids.data() + first, count, to, 1, message, sizeof message)) wrong(message);
  }
  return result;
}

void check(const char* folder, const tiny::Model& model, int32_t arithmetic, int32_t step) {
  std::vector<int32_t> ids;
  for (int i = 0; i < model.positions; i++) ids.push_back((i * 7 + 3) % model.vocabulary);
  std::vector<float> expected;
  for (int32_t isa = 0; potq_isa_name(isa); isa++) {
    if (potq_isa_usable(isa) != 1) continue;
    char message[2048];
    const potq_engine_options options = {1, 0, arithmetic, isa};
    potq_engine* engine = potq_engine_open(folder, &options, message, sizeof message);
    if (!engine) wrong(message);
    for (const int32_t rows : {int32_t(ids.size()), step}) {
      const std::vector<float> found = logits(engine, ids, rows);
      if (expected.empty()) expected = found;
      if (std::memcmp(found.data(), expected.data(), found.size() * sizeof(float))) wrong("other logits");
    }
    potq_engine_close(engine);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const ScratchFolder folder;
  Bytes bytes(data, size);
  const int32_t arithmetic = bytes.flag() ? POTQ_FLOAT : POTQ_INT8, step = bytes.take(1, 9);
  const tiny::Model model = model_of(&bytes);
  tiny::write(model, folder.path());
  check(folder.path().c_str(), model, arithmetic, step);
  return 0;
}
