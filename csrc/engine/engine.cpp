// The C interface of the engine and its tokenizers.
#include "engine.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>

#include "handle.h"
#include "tokenizer.h"

using namespace potq::engine;

struct potq_tokenizer {
  explicit potq_tokenizer(const char* file) : tokenizer(file) {}
  Tokenizer tokenizer;
};

namespace {

int32_t best_isa() {
  int32_t best = 0;
  for (const char* name : {"avx512vnni", "avxvnni", "avx2", "neoni8mm", "neondot", "neon", "scalar"}) {
    for (int32_t isa = 0; potq_isa_name(isa); isa++) {
      if (!std::strcmp(potq_isa_name(isa), name) && potq_isa_usable(isa) == 1) return isa;
    }
  }
  return best;
}

}  // namespace

potq_engine* potq_engine_open(const char* folder, const potq_engine_options* given, char* message, size_t size) {
  return guarded<potq_engine*>(message, size, nullptr, [&] {
    constexpr int32_t kMostThreads = 256;
    potq_engine_options options = *given;
    if (options.threads == 0)
      options.threads = std::max(1, std::min(int32_t(std::thread::hardware_concurrency()), kMostThreads));
    if (options.threads < 1 || options.threads > kMostThreads) fail("threads is not in 1..%d", kMostThreads);
    if (options.context < 0) fail("the context is negative");
    if (options.arithmetic != POTQ_INT8 && options.arithmetic != POTQ_FLOAT) fail("unknown arithmetic");
    const int32_t isa = options.isa < 0 ? best_isa() : options.isa;
    if (potq_isa_usable(isa) != 1) fail("this instruction set cannot be used on this CPU");
    return new potq_engine(folder, options, isa);
  });
}

void potq_engine_close(potq_engine* engine) { delete engine; }

void potq_engine_describe(const potq_engine* engine, potq_engine_facts* facts) {
  *facts = {engine->model.config.vocabulary,
            engine->model.config.layers,
            engine->forward.context(),
            engine->pool.threads(),
            engine->isa,
            int64_t(engine->model.weights.bytes())};
}

int32_t potq_engine_append(potq_engine* engine, const int32_t* ids, int32_t count, float* logits, int32_t all, char* message,
                           size_t size) {
  return guarded<int32_t>(message, size, 1, [&] {
    engine->append(ids, count, logits, all);
    return 0;
  });
}

int32_t potq_engine_length(const potq_engine* engine) { return engine->sequence.length(); }

int32_t potq_engine_truncate(potq_engine* engine, int32_t length) {
  if (length < 0 || length > engine->sequence.length()) return 1;
  engine->truncate(length);
  return 0;
}

int32_t potq_engine_start(potq_engine* engine, const int32_t* prompt, int32_t count, const potq_sampling* sampling,
                          const int32_t* ends, int32_t end_count, char* message, size_t size) {
  return guarded<int32_t>(message, size, -1, [&] {
    return engine->start(prompt, count, *sampling,
                         ends ? std::vector<int32_t>(ends, ends + end_count) : engine->model.config.end_ids);
  });
}

int32_t potq_engine_next(potq_engine* engine, int32_t* token, char* message, size_t size) {
  return guarded<int32_t>(message, size, POTQ_END_ERROR, [&] { return engine->next(token); });
}

int32_t potq_engine_generate(potq_engine* engine, const int32_t* prompt, int32_t count, int32_t most,
                             const potq_sampling* sampling, potq_on_token on_token, void* user, char* message, size_t size) {
  if (potq_engine_start(engine, prompt, count, sampling, nullptr, 0, message, size) < 0) return POTQ_END_ERROR;
  for (int32_t made = 0; made < most;) {
    int32_t token;
    const int32_t state = potq_engine_next(engine, &token, message, size);
    if (state != POTQ_STEP_TOKEN && state != POTQ_STEP_PROMPT) return state;
    if (state == POTQ_STEP_TOKEN && on_token(user, token)) return POTQ_END_STOPPED;
    made += state == POTQ_STEP_TOKEN;
  }
  return POTQ_END_LENGTH;
}

potq_tokenizer* potq_tokenizer_open(const char* file, char* message, size_t size) {
  return guarded<potq_tokenizer*>(message, size, nullptr, [&] { return new potq_tokenizer(file); });
}

void potq_tokenizer_close(potq_tokenizer* tokenizer) { delete tokenizer; }

int64_t potq_tokenizer_encode(const potq_tokenizer* tokenizer, const char* text, size_t bytes, int32_t special, int32_t* ids,
                              size_t room, char* message, size_t size) {
  return guarded<int64_t>(message, size, -1, [&] {
    const std::vector<int32_t> found = tokenizer->tokenizer.encode(std::string_view(text, bytes), special);
    std::copy(found.begin(), found.begin() + ptrdiff_t(std::min(room, found.size())), ids);
    return int64_t(found.size());
  });
}

const char* potq_tokenizer_bytes(const potq_tokenizer* tokenizer, int32_t id, size_t* bytes) {
  const std::string_view found = tokenizer->tokenizer.bytes(id);
  *bytes = found.size();
  return found.data();
}
