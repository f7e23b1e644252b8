// The C interface: checks of arguments, and the border that no exception crosses.
#include "engine.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "error.h"
#include "forward.h"
#include "sampler.h"
#include "tokenizer.h"

using namespace potq::engine;

struct potq_engine {
  potq_engine(const char* folder, const potq_engine_options& options, int32_t isa)
      : pool(options.threads),
        model(load_model(folder, pool)),
        isa(isa),
        forward(model, pool, context_of(options), isa, options.arithmetic),
        logits(size_t(model.config.vocabulary)) {
    sequence.reserve(size_t(forward.context()) + 1);
  }

  int context_of(const potq_engine_options& options) const {
    const int own = model.config.positions;
    if (options.context > own) fail("a context of %d tokens was asked for, the model knows %d", options.context, own);
    return options.context ? options.context : own;
  }

  // Throws if the ids cannot stand behind `used` tokens.
  void check(const int32_t* ids, int32_t count, int32_t used) const {
    if (count < 1) fail("there are no tokens to append; a prompt has at least one");
    if (count > forward.context() - used)
      fail("%d tokens do not fit the context of %d, of which %d are used; shorten the prompt or open with a larger context",
           count, forward.context(), used);
    for (int32_t i = 0; i < count; i++) {
      if (ids[i] < 0 || ids[i] >= model.config.vocabulary)
        fail("token %d (number %d) is outside the vocabulary of %d; the tokenizer is another model's", ids[i], i,
             model.config.vocabulary);
    }
  }

  void truncate(int32_t length) {
    sampler.reset();
    forward.forget(length);
    sequence.resize(size_t(length));
  }

  void append(const int32_t* ids, int32_t count, float* to, bool all) {
    check(ids, count, forward.length());
    truncate(forward.length());
    sequence.insert(sequence.end(), ids, ids + count);
    for (int32_t first = 0; first < count; first += Forward::kChunk) {
      const int32_t rows = std::min(Forward::kChunk, count - first);
      const bool wanted = to && (all || first + rows == count);
      forward.run(ids + first, rows, wanted ? to + (all ? size_t(first) * size_t(model.config.vocabulary) : 0) : nullptr, all);
    }
  }

  int32_t start(const int32_t* prompt, int32_t count, const potq_sampling& sampling, std::vector<int32_t> ends) {
    check(prompt, count, 0);
    auto made = std::make_unique<Sampler>(sampling, model.config.vocabulary);
    for (int32_t i = 0; i < count; i++) made->seen(prompt[i]);
    const int32_t most = std::min(forward.length(), count - 1);
    const int32_t kept = int32_t(std::mismatch(prompt, prompt + most, sequence.begin()).first - prompt);
    truncate(kept);
    sequence.insert(sequence.end(), prompt + kept, prompt + count);
    sampler = std::move(made), text_ends = std::move(ends);
    return kept;
  }

  int32_t next(int32_t* token) {
    std::unique_ptr<Sampler> current = std::move(sampler);  // put back if the text goes on
    if (!current) fail("no text is under way; begin one");
    const int32_t length = forward.length(), pending = int32_t(sequence.size()) - length;
    if (length == forward.context()) return POTQ_END_CONTEXT;
    const int32_t rows = std::min(Forward::kChunk, pending);
    forward.run(sequence.data() + length, rows, rows == pending ? logits.data() : nullptr, false);
    if (rows == pending) {
      *token = current->choose(logits.data());
      if (std::find(text_ends.begin(), text_ends.end(), *token) != text_ends.end()) return POTQ_END_TOKEN;
      current->seen(*token);
      sequence.push_back(*token);
    }
    sampler = std::move(current);
    return rows == pending ? POTQ_STEP_TOKEN : POTQ_STEP_PROMPT;
  }

  Pool pool;
  Model model;
  int32_t isa;
  Forward forward;
  std::vector<float> logits;
  std::vector<int32_t> sequence;     // the tokens in the cache, and behind them those that the next step reads
  std::unique_ptr<Sampler> sampler;  // while a text is under way
  std::vector<int32_t> text_ends;    // tokens that end it
};

struct potq_tokenizer {
  explicit potq_tokenizer(const char* file) : tokenizer(file) {}
  Tokenizer tokenizer;
};

namespace {

void say(char* message, size_t size, const char* text) {
  if (!message || !size) return;
  std::strncpy(message, text, size - 1);
  message[size - 1] = 0;
}

// Runs `action`; its error becomes the message and `otherwise` the result.
template <class Result, class Action>
Result guarded(char* message, size_t size, Result otherwise, Action action) {
  try {
    return action();
  } catch (const std::bad_alloc&) {
    say(message, size, "no memory");
  } catch (const std::exception& error) {
    say(message, size, error.what());
  }
  return otherwise;
}

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

int32_t potq_engine_length(const potq_engine* engine) { return engine->forward.length(); }

int32_t potq_engine_truncate(potq_engine* engine, int32_t length) {
  if (length < 0 || length > engine->forward.length()) return 1;
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
