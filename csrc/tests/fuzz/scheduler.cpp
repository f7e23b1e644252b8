// Arbitrary calls of a scheduler on a sound model, by one byte each: texts of arbitrary ids, lengths and settings, masks,
// cancels, steps. Whatever was called, all texts end, and nothing of the cache stays in use.
#include <vector>

#include "../../engine/engine.h"
#include "../scratch.h"
#include "../tiny_model.h"
#include "parts.h"

namespace {

constexpr int kMostCalls = 200, kMostSteps = 20000;

potq_engine* open() {
  tiny::Model model;
  model.layers = 1, model.hidden = 16, model.intermediate = 16, model.vocabulary = 24, model.positions = 150;
  model.heads = 2, model.kv_heads = 1, model.head_size = 8;
  const ScratchFolder folder;
  tiny::write(model, folder.path());
  const potq_engine_options options = {1, 0, POTQ_INT8, -1};
  potq_engine* engine = potq_engine_open(folder.path().c_str(), &options, nullptr, 0);
  if (!engine) __builtin_trap();
  return engine;
}

class Bytes {
 public:
  explicit Bytes(std::string_view rest) : rest_(rest) {}
  bool empty() const { return rest_.empty(); }
  int next() {
    if (rest_.empty()) return 0;
    const int byte = uint8_t(rest_.front());
    rest_.remove_prefix(1);
    return byte;
  }

 private:
  std::string_view rest_;
};

void submit(potq_scheduler* scheduler, Bytes* bytes) {
  std::vector<int32_t> prompt(size_t(bytes->next()) % 160);
  const int first = bytes->next(), step = bytes->next() % 8;
  for (size_t i = 0; i < prompt.size(); i++) prompt[i] = first == 255 ? 24 : (first + int(i) * step) % 24;
  const int32_t end = bytes->next() % 24;
  const int bits = bytes->next();
  const potq_request request = {
      prompt.data(),     &end,          int32_t(prompt.size()), bits & 1,
      bytes->next() - 1, bits >> 1 & 3, (bits >> 3 & 1) * 60,   {float(bits >> 4 & 1), 0.9f, 0.01f, 1.1f, bits >> 5, 1}};
  potq_scheduler_submit(scheduler, &request, nullptr, 0);
}

int32_t step(potq_scheduler* scheduler) {
  const int32_t count = potq_scheduler_step(scheduler, nullptr, 0);
  if (count < 0) __builtin_trap();
  potq_event event;
  for (int32_t i = 0; i < count; i++) potq_scheduler_event(scheduler, i, &event);
  return count;
}

void call(potq_scheduler* scheduler, Bytes* bytes) {
  const int what = bytes->next();
  if (what < 100) {
    step(scheduler);
  } else if (what < 200) {
    submit(scheduler, bytes);
  } else if (what < 230) {
    potq_scheduler_cancel(scheduler, bytes->next());
  } else {
    const uint8_t mask[3] = {uint8_t(bytes->next()), uint8_t(bytes->next()), uint8_t(bytes->next())};
    potq_scheduler_allow(scheduler, bytes->next(), what & 1 ? mask : nullptr, size_t(what) % 4, nullptr, 0);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static potq_engine* engine = open();
  Bytes bytes(view(data, size));
  constexpr int64_t kPage = 64 * 8 * 2 * 2;  // positions, numbers, keys and values, bytes
  const potq_scheduler_options options = {bytes.next(), bytes.next(), bytes.next() % 8 * kPage};
  potq_scheduler* scheduler = potq_scheduler_open(engine, &options, nullptr, 0);
  if (!scheduler) return 0;
  for (int i = 0; i < kMostCalls && !bytes.empty(); i++) call(scheduler, &bytes);
  potq_scheduler_statistics facts = {};
  for (int i = 0; i < kMostSteps; i++) {
    potq_scheduler_describe(scheduler, &facts);
    if (!facts.running && !facts.waiting) break;
    step(scheduler);
  }
  if (facts.running || facts.waiting || facts.pages_used) __builtin_trap();
  potq_scheduler_close(scheduler);
  return 0;
}
