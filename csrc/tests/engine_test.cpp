// Self-test of the decode engine on small random models, without Python.
//
//   engine_test                   checks, and prints the tokens that were generated: the same on every machine
//   engine_test --write FOLDER    writes a model with a tokenizer into an existing folder, for potq-run
//
// What it checks is what threads could break, for sanitizers to look on: tokens and logits are the same bits whatever their
// number, the instruction set, and however the tokens are cut. That the logits are right is tested against Hugging Face's
// modules (tests/engine).
#include "../engine/engine.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../engine/error.h"
#include "../engine/file.h"
#include "../engine/pool.h"
#include "lanes_check.h"
#include "scheduler_check.h"
#include "scratch.h"
#include "tiny_model.h"
#include "tiny_tokenizer.h"

namespace {

[[noreturn]] void wrong(const std::string& what) {
  std::fprintf(stderr, "engine_test: %s\n", what.c_str());
  std::exit(1);
}

class Engine {
 public:
  Engine(const std::string& folder, int32_t threads, int32_t arithmetic, int32_t isa = -1) {
    const potq_engine_options options = {threads, 0, arithmetic, isa};
    engine_ = potq_engine_open(folder.c_str(), &options, message_, sizeof message_);
    if (!engine_) wrong(message_);
  }
  ~Engine() { potq_engine_close(engine_); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Logits of all tokens, appended `step` at a time.
  std::vector<float> logits(const std::vector<int32_t>& ids, int32_t step) {
    potq_engine_facts facts;
    potq_engine_describe(engine_, &facts);
    const size_t vocabulary = size_t(facts.vocabulary);
    std::vector<float> result(ids.size() * vocabulary);
    potq_engine_truncate(engine_, 0);
    for (int32_t first = 0; first < int32_t(ids.size()); first += step) {
      const int32_t count = std::min(step, int32_t(ids.size()) - first);
      if (potq_engine_append(engine_, ids.data() + first, count, result.data() + size_t(first) * vocabulary, 1, message_,
                             sizeof message_))
        wrong(message_);
    }
    return result;
  }

  std::string generate(const std::vector<int32_t>& prompt, const potq_sampling& sampling) {
    std::string text;
    potq_engine_truncate(engine_, 0);
    if (potq_engine_start(engine_, prompt.data(), int32_t(prompt.size()), &sampling, nullptr, 0, message_, sizeof message_) < 0)
      wrong(message_);
    for (int made = 0; made < 12;) {
      int32_t token;
      const int32_t step = potq_engine_next(engine_, &token, message_, sizeof message_);
      if (step != POTQ_STEP_TOKEN && step != POTQ_STEP_PROMPT) wrong("generation ended early: " + std::string(message_));
      if (step == POTQ_STEP_TOKEN) text += " " + std::to_string(token), made++;
    }
    return text;
  }

 private:
  potq_engine* engine_;
  char message_[2048] = "";
};

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size() * sizeof(float));
}

void check(const tiny::Model& model, int32_t arithmetic) {
  const ScratchFolder folder;
  tiny::write(model, folder.path());
  const std::string name =
      std::string(tiny::name(model.family)) + " " + tiny::name(model.weights) + (arithmetic == POTQ_INT8 ? " int8" : " float");
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 23; i++) ids.push_back(i * 71 % model.vocabulary);
  const potq_sampling greedy = {0, 1, 0, 1, 0, 0}, drawn = {1, 0.95f, 0.001f, 1.1f, 40, 7};
  std::vector<float> expected;
  std::string tokens;
  for (const int32_t threads : {1, 2, 3}) {
    Engine engine(folder.path(), threads, arithmetic);
    if (threads == 1) expected = engine.logits(ids, 23);
    for (const int32_t step : {1, 5, 23}) {
      if (!same(engine.logits(ids, step), expected)) wrong(name + ": other logits, " + std::to_string(threads) + " threads");
    }
    const std::string found = engine.generate(ids, greedy) + " |" + engine.generate(ids, drawn);
    if (threads == 1) tokens = found;
    if (found != tokens) wrong(name + ": other tokens, " + std::to_string(threads) + " threads");
  }
  std::printf("%s:%s\n", name.c_str(), tokens.c_str());
}

// Rows of a prompt that attend together: groups of heads that do not fill a tile, windows shorter than its rows, more tokens
// than go through the layers at once, up to the model's limit. One token at a time, on the first instruction set, is what all
// equal.
void check_prompts() {
  for (const int group : {1, 2, 3, 5, 8}) {
    for (const int window : {0, 1, 3, 40}) {
      tiny::Model model;
      model.family = tiny::kMistral, model.weights = tiny::kFloat32, model.window = window, model.positions = 150;
      model.hidden = 32, model.intermediate = 48, model.vocabulary = 40;
      model.kv_heads = 1 + group % 2, model.heads = group * model.kv_heads, model.head_size = 10 + 2 * group;
      const ScratchFolder folder;
      tiny::write(model, folder.path());
      std::vector<int32_t> ids;
      for (int32_t i = 0; i < model.positions; i++) ids.push_back(i * 71 % model.vocabulary);
      std::vector<float> expected;
      for (int32_t isa = 0; potq_isa_name(isa); isa++) {
        if (potq_isa_usable(isa) != 1) continue;
        Engine engine(folder.path(), 1, POTQ_FLOAT, isa);
        if (expected.empty()) expected = engine.logits(ids, 1);
        for (const int32_t step : {11, 150}) {
          if (!same(engine.logits(ids, step), expected))
            wrong("a prompt in parts of " + std::to_string(step) + ": other logits, groups of " + std::to_string(group) +
                  ", a window of " + std::to_string(window) + ", " + potq_isa_name(isa));
        }
      }
    }
  }
}

void check_models() {
  const tiny::Weights weights[tiny::kFamilies] = {tiny::kPot4, tiny::kPot3, tiny::kPot2, tiny::kInt8, tiny::kPot4, tiny::kPot4};
  for (int family = 0; family < tiny::kFamilies; family++) {
    tiny::Model model;
    model.family = tiny::Family(family), model.weights = weights[family];
    model.tied = family % 2 == 0, model.biased = true, model.window = 10;
    if (model.family == tiny::kGpt2) model.kv_heads = model.heads;
    for (const int32_t arithmetic : {POTQ_INT8, POTQ_FLOAT}) check(model, arithmetic);
  }
  for (const tiny::Weights kind : {tiny::kFloat16, tiny::kPot3, tiny::kPot6}) {
    tiny::Model model;
    model.family = tiny::kQwen3Moe, model.weights = kind, model.tied = false;
    model.layers = 3, model.experts = 20, model.chosen = 7;
    check(model, POTQ_INT8);
  }
  for (const tiny::Weights kind : {tiny::kFloat32, tiny::kFloat16, tiny::kBFloat16, tiny::kPot6, tiny::kPot2t}) {
    tiny::Model model;
    model.weights = kind;
    check(model, POTQ_INT8);
  }
}

// Jobs that follow at once, and after their threads fell asleep, also at barriers to which one came late: every thread sees
// what the others wrote before a barrier.
struct PoolCheck {
  static constexpr int kThreads = 3;
  potq::engine::Pool pool{kThreads};
  int written[kThreads] = {}, taken[kThreads] = {}, job = 0;

  void work(int thread) {
    for (int round = 0; round < 5; round++) {
      if (job % 30 == 0 && thread == round % kThreads) usleep(3000);  // the others sleep
      written[thread] = job * 5 + round;
      pool.barrier();
      for (const int value : written) {
        if (value != job * 5 + round) wrong("pool: a write was not seen");
      }
      taken[thread] = 0;
      while (pool.take(2) < 20) taken[thread]++;
      pool.barrier();
      if (taken[0] + taken[1] + taken[2] != 10) wrong("pool: tasks were lost");
      pool.barrier();
    }
  }
  void run() {
    for (job = 0; job < 300; job++) {
      pool.run([](void* self, int thread) { static_cast<PoolCheck*>(self)->work(thread); }, this);
      if (job % 100 == 99) usleep(50000);
    }
  }
};

void check_patience() {
  using std::chrono::microseconds;
  potq::engine::Patience patience(microseconds(200));
  for (int i = 0; i < 20; i++) patience.disappointed();
  const microseconds least = patience.left();
  if (least < microseconds(1) || least > microseconds(10)) wrong("patience: vain spins leave a few microseconds");
  patience.rewarded();
  if (patience.left() <= least) wrong("patience: it does not grow");
  for (int i = 0; i < 100; i++) patience.rewarded();
  if (patience.left() != microseconds(200)) wrong("patience: it grows to the most");
}

bool readable(const potq::engine::File& file, char* to, size_t bytes) try {
  file.read(0, to, bytes);
  return true;
} catch (const potq::engine::Error& error) {
  if (!std::strstr(error.what(), "became shorter")) wrong(error.what());
  return false;
}

// A file that somebody writes to while it is read: truncated, it is an error; replaced, it is still the one that was opened.
void check_files() {
  const ScratchFolder folder;
  const std::string path = folder.path() + "/file", other = folder.path() + "/other";
  char found[4] = "";
  write_file(path, "old");
  write_file(other, "new");
  const potq::engine::File file(path);
  if (std::rename(other.c_str(), path.c_str())) wrong("rename");
  if (!readable(file, found, 3) || std::strcmp(found, "old")) wrong("a replaced file is not what was opened");
  const potq::engine::File again(path);
  write_file(path, "n");
  if (readable(again, found, 3)) wrong("a truncated file was read");
}

void write_for_run(const std::string& folder) {
  tiny::Model model;
  model.positions = 256;
  tiny::write(model, folder);
  write_file(folder + "/tokenizer.json", tiny_tokenizer(R"({"type": "ByteLevel", "add_prefix_space": false})"));
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 3 && !std::strcmp(arguments[1], "--write")) return write_for_run(arguments[2]), 0;
  if (count != 1) return std::fprintf(stderr, "usage: engine_test [--write FOLDER]\n"), 2;
  check_files();
  PoolCheck().run();
  check_patience();
  if (!check_attention() || !check_products()) return 1;
  check_prompts();
  check_models();
  if (!check_scheduler()) return 1;
}
