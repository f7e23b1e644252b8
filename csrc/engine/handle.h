// What stands behind a potq_engine: a model, and one sequence of it.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "border.h"
#include "cache.h"
#include "engine.h"
#include "error.h"
#include "forward.h"
#include "model.h"
#include "pool.h"
#include "sampler.h"

using namespace potq::engine;

struct potq_engine {
  potq_engine(const char* folder, const potq_engine_options& options, int32_t isa)
      : pool(options.threads),
        model(load_model(folder, pool)),
        isa(isa),
        forward(model, pool, context_of(options), isa, options.arithmetic),
        cache(model.config, Cache::pages_for(forward.context())),
        sequence(cache),
        logits(size_t(model.config.vocabulary)) {
    tokens.reserve(size_t(forward.context()) + 1);
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
    model.config.check_ids(ids, count);
  }

  void truncate(int32_t length) {
    sampler.reset();
    sequence.truncate(length);
    tokens.resize(size_t(length));
  }

  // Computes the tokens behind the sequence, of the last `wanted` of which `to` gets logits.
  void compute(int32_t count, int32_t wanted, float* to) {
    sequence.reserve(count);  // there is a page for every token of the context
    forward.run({{tokens.data() + sequence.length(), count, wanted, &sequence}}, cache, to);
    sequence.advance(count, nullptr);
  }

  void append(const int32_t* ids, int32_t count, float* to, bool all) {
    check(ids, count, sequence.length());
    truncate(sequence.length());
    tokens.insert(tokens.end(), ids, ids + count);
    for (int32_t first = 0; first < count; first += Forward::kChunk) {
      const int32_t rows = std::min(Forward::kChunk, count - first);
      const int32_t wanted = !to ? 0 : all ? rows : first + rows == count;
      compute(rows, wanted, to && all ? to + size_t(first) * size_t(model.config.vocabulary) : to);
    }
  }

  int32_t start(const int32_t* prompt, int32_t count, const potq_sampling& sampling, std::vector<int32_t> ends) {
    check(prompt, count, 0);
    auto made = std::make_unique<Sampler>(sampling, model.config.vocabulary);
    for (int32_t i = 0; i < count; i++) made->seen(prompt[i]);
    const int32_t most = std::min(sequence.length(), count - 1);
    const int32_t kept = int32_t(std::mismatch(prompt, prompt + most, tokens.begin()).first - prompt);
    truncate(kept);
    tokens.insert(tokens.end(), prompt + kept, prompt + count);
    sampler = std::move(made), text_ends = std::move(ends);
    return kept;
  }

  int32_t next(int32_t* token) {
    std::unique_ptr<Sampler> current = std::move(sampler);  // put back if the text goes on
    if (!current) fail("no text is under way; begin one");
    const int32_t length = sequence.length(), pending = int32_t(tokens.size()) - length;
    if (length == forward.context()) return POTQ_END_CONTEXT;
    const int32_t rows = std::min(Forward::kChunk, pending);
    compute(rows, rows == pending, logits.data());
    if (rows == pending) {
      *token = current->choose(logits.data());
      if (std::find(text_ends.begin(), text_ends.end(), *token) != text_ends.end()) return POTQ_END_TOKEN;
      current->seen(*token);
      tokens.push_back(*token);
    }
    sampler = std::move(current);
    return rows == pending ? POTQ_STEP_TOKEN : POTQ_STEP_PROMPT;
  }

  Pool pool;
  Model model;
  int32_t isa;
  Forward forward;
  Cache cache;
  Sequence sequence;
  std::vector<float> logits;
  std::vector<int32_t> tokens;       // the sequence's, and behind them those that the next step reads
  std::unique_ptr<Sampler> sampler;  // while a text is under way
  std::vector<int32_t> text_ends;    // tokens that end it
};
