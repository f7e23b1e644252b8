#include "scheduler.h"

#include <unistd.h>

#include <algorithm>

#include "error.h"
#include "logprobs.h"

namespace potq {
namespace engine {
namespace {

constexpr int kMostTops = 1000;

int checked(int value, int least, int most, const char* name) {
  if (value < least || value > most) fail("invalid %s %d; use %d to %d", name, value, least, most);
  return value;
}

// As many as the options allow. Without a word, all slots at the whole context, within a quarter of the machine's memory.
int64_t pages_of(const Config& config, int context, const potq_scheduler_options& options) {
  const int64_t bytes = int64_t(Cache::page_bytes(config));
  const int64_t all = Cache::pages_for(context) * options.slots;
  const int64_t memory = int64_t(sysconf(_SC_PHYS_PAGES)) * int64_t(sysconf(_SC_PAGESIZE));
  const int64_t pages =
      options.cache_bytes ? options.cache_bytes / bytes : std::min(all, std::max(memory / 4 / bytes, int64_t(1)));
  if (pages < 1)
    fail("a cache of %lld bytes holds no page of %d tokens, which takes %lld; raise cache_bytes",
         static_cast<long long>(options.cache_bytes), Cache::kPage, static_cast<long long>(bytes));
  return std::min(pages, all);
}

size_t logits_bytes(const Config& config) {
  Parts parts(nullptr);
  parts.take<float>(size_t(Forward::kRows) * size_t(config.vocabulary));
  return parts.used();
}

}  // namespace

Scheduler::Scheduler(const Model& model, Pool& pool, Forward& forward, const potq_scheduler_options& options)
    : model_(model),
      pool_(pool),
      forward_(forward),
      slots_(checked(options.slots, 1, Forward::kSlots, "slots")),
      chunk_(checked(options.chunk, 1, Forward::kChunk, "chunk")),
      cache_(model.config, pages_of(model.config, forward.context(), options)),
      memory_(logits_bytes(model.config), "the logits", false),
      raw_(size_t(pool.threads())) {}

int64_t Scheduler::submit(const potq_request& request) {
  const int context = forward_.context();
  if (request.count < 1) fail("the prompt is empty; it has at least one token");
  if (request.count > context) fail("a prompt of %d tokens does not fit the context of %d; shorten it", request.count, context);
  model_.config.check_ids(request.prompt, request.count);
  if (request.most < 0) fail("invalid max_new %d; use 0 or more", request.most);
  if (request.echo < 0) fail("invalid echo %d; use 0 or more", request.echo);
  if (request.logprobs < 0 || request.logprobs > std::min(kMostTops, model_.config.vocabulary))
    fail("invalid logprobs %d; use 0 to %d", request.logprobs, std::min(kMostTops, model_.config.vocabulary));
  Sampler::check(request.sampling);
  auto text = std::make_unique<Text>(cache_);
  // the last token is not read again
  text->prompt = request.count;
  text->most = int(std::min(int64_t(request.count) + request.most, int64_t(context) + 1));
  const int64_t pages = Cache::pages_for(std::max(text->most - 1, text->prompt));
  if (pages > cache_.total())
    fail("a text of %d tokens needs %lld pages of the cache, which has %lld; ask for fewer tokens, or raise cache_bytes",
         text->most, static_cast<long long>(pages), static_cast<long long>(cache_.total()));
  text->tokens.assign(request.prompt, request.prompt + request.count);
  text->sampling = request.sampling;
  text->ends = request.ends ? std::vector<int32_t>(request.ends, request.ends + request.end_count) : model_.config.end_ids;
  text->tops = request.logprobs;
  if (text->tops) text->echoes = std::min(request.echo, request.count - 1);
  text->request = ++requests_;
  waiting_.push_back(std::move(text));
  return requests_;
}

void Scheduler::allow(int64_t request, const uint8_t* bits, size_t bytes) {
  if (bits && bytes < (size_t(model_.config.vocabulary) + 7) / 8)
    fail("a mask of %zu bytes; the vocabulary of %d tokens takes %zu", bytes, model_.config.vocabulary,
         (size_t(model_.config.vocabulary) + 7) / 8);
  for (Texts* texts : {&running_, &waiting_}) {
    for (const auto& text : *texts) {
      if (text->request == request) text->allowed.assign(bits, bits + (bits ? bytes : 0));
    }
  }
}

void Scheduler::cancel(int64_t request) {
  for (Texts* texts : {&running_, &waiting_}) {
    const auto found = std::find_if(texts->begin(), texts->end(), [&](const auto& text) { return text->request == request; });
    if (found == texts->end()) continue;
    ended_.push_back({request, -1, POTQ_FINISH_CANCELLED, 0, {}, {}, {}});
    texts->erase(found);
    return;
  }
}

potq_scheduler_statistics Scheduler::statistics() const {
  return {int32_t(running_.size()), int32_t(waiting_.size()), cache_.used(),
          cache_.total(),           int64_t(cache_.bytes()),  shared_tokens_};
}

const std::vector<Scheduler::Event>& Scheduler::step() {
  events_.swap(ended_);
  ended_.clear();
  admit();
  plan();
  if (spans_.empty()) return events_;
  float* logits = reinterpret_cast<float*>(memory_.data());
  forward_.run(spans_, cache_, logits);
  choices_.clear();
  for (size_t i = 0; i < spans_.size(); i++) {
    Text* text = planned_[i];
    const int end = text->sequence.length() + spans_[i].count;
    for (int next = end - spans_[i].wanted + 1; next <= end; next++) {
      const bool known = next < int(text->tokens.size());
      choices_.push_back({text, known, known ? text->tokens[size_t(next)] : -1, {}, {}});
    }
    text->sequence.advance(spans_[i].count, text->tokens.data());
  }
  pool_.run([](void* self, int thread) { static_cast<Scheduler*>(self)->choose(thread); }, this);
  for (Choice& choice : choices_) conclude(choice);
  running_.erase(std::remove_if(running_.begin(), running_.end(), [](const auto& text) { return text->finished; }),
                 running_.end());
  return events_;
}

// ---- which texts run

void Scheduler::admit() {
  while (!waiting_.empty() && int(running_.size()) < slots_ && start(*waiting_.front())) {
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

// Whether there is room for the text's tokens, and a page for each text that runs, so that it is not sent back at once.
bool Scheduler::start(Text& text) {
  const int64_t shared = shared_tokens_;
  share(text);
  const int64_t pages = Cache::pages_for(int64_t(text.tokens.size())) - text.sequence.length() / Cache::kPage;
  if (!running_.empty() && pages + int64_t(running_.size()) > cache_.available()) {
    text.sequence.truncate(0);
    shared_tokens_ = shared;
    return false;
  }
  if (!text.sampler && text.most > text.prompt) {
    text.sampler = std::make_unique<Sampler>(text.sampling, model_.config.vocabulary);
    for (const int32_t token : text.tokens) text.sampler->seen(token);
  }
  return true;
}

void Scheduler::share(Text& text) { shared_tokens_ += text.sequence.share(text.tokens.data(), text.wanted()); }

// ---- what a step computes

// Oldest first: every text that only lacks its last token, and chunks of the others.
void Scheduler::plan() {
  spans_.clear(), planned_.clear();
  const auto flows = [](const auto& text) { return text->pending() == 1; };
  const int flowing = int(std::count_if(running_.begin(), running_.end(), flows)), others = int(running_.size()) - flowing;
  // A chunk makes those that flow wait for those that do not: the more of these there are for each of those, the longer.
  int left = flowing ? std::min(chunk_ * std::max(1, others / flowing), Forward::kChunk) : Forward::kChunk;
  for (size_t i = 0; i < running_.size(); i++) {  // which may become shorter
    Text& text = *running_[i];
    share(text);
    const int count = text.pending() == 1 ? 1 : std::min(text.pending(), left);
    if (!count || !make_room(text, count)) continue;
    if (text.pending() > 1) left -= count;
    const int wanted = std::clamp(text.sequence.length() + count - text.wanted(), 0, count);
    spans_.push_back({text.tokens.data() + text.sequence.length(), count, wanted, &text.sequence});
    planned_.push_back(&text);
  }
}

// Room for a running text's next tokens, if need be that of the youngest, which may be itself: false.
bool Scheduler::make_room(Text& text, int count) {
  while (!text.sequence.reserve(count)) {
    const bool itself = running_.back().get() == &text;
    running_.back()->sequence.truncate(0);
    waiting_.push_front(std::move(running_.back()));
    running_.pop_back();
    if (itself) return false;
  }
  return true;
}

// ---- what comes of it

void Scheduler::choose(int thread) {
  float* logits = reinterpret_cast<float*>(memory_.data());
  const int count = int(choices_.size());
  for (int i = pool_.take(1); i < count; i = pool_.take(1))
    choose_one(choices_[size_t(i)], logits + size_t(i) * size_t(model_.config.vocabulary), raw_[size_t(thread)]);
}

void Scheduler::choose_one(Choice& choice, float* logits, std::vector<float>& raw) try {
  const int vocabulary = model_.config.vocabulary;
  Text& text = *choice.text;
  const float* before = logits;
  if (!choice.known) {
    if (!text.sampler) return;  // no new token was asked for
    if (text.tops) raw.assign(logits, logits + vocabulary), before = raw.data();
    choice.token = text.sampler->choose(logits, text.allowed.empty() ? nullptr : text.allowed.data());
  }
  if (text.tops) add_logprobs(before, vocabulary, choice.token, text.tops, &choice.logprobs);
} catch (const std::exception& error) {
  choice.error = error.what()[0] ? error.what() : "no memory";
}

void Scheduler::conclude(Choice& choice) {
  Text& text = *choice.text;
  const auto tell = [&](int32_t token, int32_t finish) {
    text.finished = finish != POTQ_FINISH_NONE;
    events_.push_back({text.request, token, finish, text.tops, {}, std::move(text.prompt_logprobs), choice.error});
    text.prompt_logprobs.clear(), text.echoes = 0;
    if (choice.token >= 0) events_.back().logprobs = std::move(choice.logprobs);
  };
  if (text.finished) return;
  if (!choice.error.empty()) return tell(-1, POTQ_FINISH_ERROR);
  if (choice.known) {
    text.prompt_logprobs.insert(text.prompt_logprobs.end(), choice.logprobs.begin(), choice.logprobs.end());
    return;
  }
  if (choice.token < 0) return tell(-1, POTQ_FINISH_LENGTH);
  if (std::find(text.ends.begin(), text.ends.end(), choice.token) != text.ends.end()) return tell(-1, POTQ_FINISH_STOP);
  text.sampler->seen(choice.token);
  text.tokens.push_back(choice.token);
  tell(choice.token, int(text.tokens.size()) == text.most ? POTQ_FINISH_LENGTH : POTQ_FINISH_NONE);
}

}  // namespace engine
}  // namespace potq
