// Many texts at once. A step computes the next token of every running text together with a chunk of the prompts of those that
// come next. Texts run in the order they came; so many have a slot, the others wait.
//
// Room in the cache is taken as texts grow. When it is used up, the youngest running text gives its pages back and waits again;
// later it reads its own tokens as if they were a prompt, and goes on as if nothing had been: a text's numbers do not depend on
// what it is computed with. So a text that can fit alone ends at some time. Rejected: setting aside all that a text may need,
// which leaves most of the cache idle, since most texts end before.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "cache.h"
#include "engine.h"
#include "forward.h"
#include "sampler.h"

namespace potq {
namespace engine {

class Scheduler {
 public:
  struct Event {
    int64_t request;
    int32_t token;  // -1: none
    int32_t finish;
    int tops;                                    // of each entry
    std::vector<potq_logprob> logprobs, prompt;  // entries of 1 + tops: the token, and the likeliest
    std::string message;
  };

  // Throws an Error if an option is out of range, or there is no memory.
  Scheduler(const Model& model, Pool& pool, Forward& forward, const potq_scheduler_options& options);

  // Throws an Error if the request can never be served.
  int64_t submit(const potq_request& request);
  // What the next token of a text may be: a bit for each, or (empty) all. Throws an Error if the mask has another size.
  void allow(int64_t request, const uint8_t* bits, size_t bytes);
  void cancel(int64_t request);
  // Throws an Error if a pass cannot be computed at all; errors of one text are its event.
  const std::vector<Event>& step();
  potq_scheduler_statistics statistics() const;

 private:
  struct Text {
    explicit Text(Cache& cache) : sequence(cache) {}
    int64_t request = 0;
    std::vector<int32_t> tokens;  // the prompt, and what came
    int prompt = 0, most = 0;     // tokens of the prompt; of both
    potq_sampling sampling = {};
    std::unique_ptr<Sampler> sampler;  // from the first time it has a slot
    std::vector<int32_t> ends;
    int tops = 0;    // 0: no logprobs
    int echoes = 0;  // tokens of the prompt whose logprobs are wanted, its last ones; never its first
    std::vector<potq_logprob> prompt_logprobs;
    std::vector<uint8_t> allowed;
    bool finished = false;
    Sequence sequence;

    int pending() const { return int(tokens.size()) - sequence.length(); }
    // The first position whose logits are wanted: what stands before may be shared.
    int wanted() const {
      const int left = echoes - int(prompt_logprobs.size()) / (1 + tops);
      return left > 0 ? prompt - 1 - left : int(tokens.size()) - 1;
    }
  };
  using Texts = std::deque<std::unique_ptr<Text>>;
  struct Choice {  // a row of logits, and what comes of it
    Text* text;
    bool known;     // the token that follows, of a prompt
    int32_t token;  // it, or what is chosen; -1: none was asked for
    std::vector<potq_logprob> logprobs;
    std::string error;
  };

  void admit();
  bool start(Text& text);
  void share(Text& text);
  void plan();
  bool make_room(Text& text, int count);
  void choose(int thread);
  void choose_one(Choice& choice, float* logits, std::vector<float>& raw);
  void conclude(Choice& choice);

  const Model& model_;
  Pool& pool_;
  Forward& forward_;
  const int slots_, chunk_;
  Cache cache_;
  Memory memory_;  // logits of a step
  Texts running_, waiting_;
  std::vector<Span> spans_;
  std::vector<Text*> planned_;  // whose spans they are
  std::vector<Choice> choices_;
  std::vector<std::vector<float>> raw_;  // by thread
  std::vector<Event> events_, ended_;    // ended: between two steps
  int64_t requests_ = 0, shared_tokens_ = 0;
};

}  // namespace engine
}  // namespace potq
