#include "scheduler_check.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "../engine/engine.h"
#include "scratch.h"
#include "splitmix.h"
#include "tiny_model.h"

namespace {

constexpr int kTexts = 24, kContext = 200;

struct Wanted {  // of a text
  std::vector<int32_t> prompt;
  int most, logprobs;
  int echo;
  potq_sampling sampling;
};

struct Setting {
  int threads, slots, chunk, pages;  // pages: of the cache, 0: enough
  uint64_t seed;                     // of the order; 0: as they are
  bool cancels;
};

bool wrong(const std::string& what) {
  std::fprintf(stderr, "scheduler: %s\n", what.c_str());
  return false;
}

// Prompts that begin alike in their first page, in two, or not at all.
std::vector<Wanted> texts() {
  SplitMix random(5);
  std::vector<Wanted> result;
  for (int i = 0; i < kTexts; i++) {
    Wanted text = {{}, 1 + int(random.next() % 40), i % 3 ? 0 : 1 + i % 4, i % 2 ? 0 : 1 + i % 5 * 40, {0, 1, 0, 1, 0, 0}};
    const int length = 1 + int(random.next() % 150), alike = i % 4 == 0 ? 0 : i % 4 == 1 ? 70 : 140;
    for (int k = 0; k < length; k++) text.prompt.push_back(k < alike ? k * 7 % 300 : int32_t(random.next() % 300));
    if (i % 2) text.sampling = {1, 0.95f, 0.001f, 1.1f, i % 4 ? 0 : 40, uint64_t(i)};
    result.push_back(text);
  }
  result[3].most = 0, result[6].most = kContext;  // the prompt alone; to the end of the context
  return result;
}

void add(std::string* to, const potq_logprob* logprobs, int count) {
  for (int i = 0; i < count; i++) {
    uint32_t bits;
    std::memcpy(&bits, &logprobs[i].logprob, sizeof bits);
    *to += " " + std::to_string(logprobs[i].token) + ":" + std::to_string(bits);
  }
}

class Run {
 public:
  Run(const std::string& folder, const Setting& setting) : setting_(setting) {
    const potq_engine_options options = {setting.threads, 0, POTQ_INT8, -1};
    engine_ = potq_engine_open(folder.c_str(), &options, message_, sizeof message_);
    constexpr int64_t kPage = 2 * 64 * 2 * 16 * 2 * 2;  // positions, layers, heads, numbers, keys and values, bytes
    const potq_scheduler_options schedule = {setting.slots, setting.chunk, setting.pages * kPage};
    if (engine_) scheduler_ = potq_scheduler_open(engine_, &schedule, message_, sizeof message_);
  }
  ~Run() {
    potq_scheduler_close(scheduler_);
    if (engine_) potq_engine_close(engine_);
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  // What came of each text, or an error.
  bool all(const std::vector<Wanted>& texts, std::vector<std::string>* found) {
    if (!scheduler_) return wrong(message_);
    std::vector<size_t> order(texts.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = i;
    SplitMix random(setting_.seed);
    for (size_t i = order.size(); setting_.seed && i > 1; i--) std::swap(order[i - 1], order[random.next() % i]);
    found->assign(texts.size(), "");
    for (size_t next = 0; next < order.size() || busy();) {
      const size_t come = setting_.seed ? random.next() % 4 : 1;  // at a time
      for (size_t i = 0; i < come && next < order.size(); i++) {
        if (!submit(texts[order[next]], order[next])) return false;
        next++;
      }
      if (setting_.cancels && random.next() % 8 == 0) cancel(texts[0]);
      if (!step(found)) return false;
    }
    potq_scheduler_statistics facts;
    potq_scheduler_describe(scheduler_, &facts);
    return facts.pages_used == 0 || wrong("pages are still used");
  }

 private:
  bool busy() const {
    potq_scheduler_statistics facts;
    potq_scheduler_describe(scheduler_, &facts);
    return facts.running || facts.waiting;
  }
  int64_t ask(const Wanted& text) {
    const potq_request request = {text.prompt.data(), nullptr,      int32_t(text.prompt.size()), 0, text.most, text.logprobs,
                                  text.echo,          text.sampling};
    return potq_scheduler_submit(scheduler_, &request, message_, sizeof message_);
  }
  bool submit(const Wanted& text, size_t number) {
    const int64_t request = ask(text);
    numbers_[request] = number;
    return request > 0 || wrong(message_);
  }
  // One more text, that is ended as soon as it came, and the one before it.
  void cancel(const Wanted& text) {
    if (cancelled_) potq_scheduler_cancel(scheduler_, cancelled_);
    cancelled_ = ask(text);
  }
  bool step(std::vector<std::string>* found) {
    const int32_t count = potq_scheduler_step(scheduler_, message_, sizeof message_);
    if (count < 0) return wrong(message_);
    for (int32_t i = 0; i < count; i++) {
      potq_event event;
      potq_scheduler_event(scheduler_, i, &event);
      if (event.finish == POTQ_FINISH_ERROR) return wrong(event.message);
      if (!numbers_.count(event.request)) continue;  // to be cancelled
      std::string& text = (*found)[numbers_[event.request]];
      add(&text, event.prompt_logprobs, event.prompt_entries);
      text += " [" + std::to_string(event.token) + "]";
      if (event.logprobs) add(&text, event.logprobs, event.entries);
      if (event.finish) text += " end " + std::to_string(event.finish);
    }
    return true;
  }

  const Setting setting_;
  potq_engine* engine_ = nullptr;
  potq_scheduler* scheduler_ = nullptr;
  std::map<int64_t, size_t> numbers_;
  int64_t cancelled_ = 0;
  char message_[2048] = "";
};

bool check_family(tiny::Family family) {
  tiny::Model model;
  model.family = family, model.positions = kContext;
  const ScratchFolder folder;
  tiny::write(model, folder.path());
  const std::vector<Wanted> wanted = texts();
  std::vector<std::string> alone, found;
  for (const Wanted& text : wanted) {  // each in a scheduler of its own
    if (!Run(folder.path(), {1, 1, 128, 0, 0, false}).all({text}, &found)) return false;
    alone.push_back(found[0]);
  }
  constexpr Setting kSettings[] = {{1, 1, 128, 0, 0, false}, {1, 16, 128, 0, 1, false}, {2, 3, 17, 0, 2, true},
                                   {3, 16, 1, 7, 3, true},   {2, 64, 32, 4, 4, true},   {1, 5, 64, 9, 5, false}};
  for (const Setting& setting : kSettings) {
    if (!Run(folder.path(), setting).all(wanted, &found)) return false;
    for (size_t i = 0; i < wanted.size(); i++) {
      if (found[i] != alone[i])
        return wrong(std::string(tiny::name(family)) + ", text " + std::to_string(i) + " is another among others, " +
                     std::to_string(setting.slots) + " slots:\n" + alone[i] + "\n" + found[i]);
    }
  }
  return true;
}

}  // namespace

bool check_scheduler() { return check_family(tiny::kQwen3) && check_family(tiny::kQwen3Moe); }
