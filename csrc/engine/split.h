// Pre-tokenizers: how a text is cut into words before they are merged. The patterns that byte-level models have are matched by
// hand (rejected: a regex library, which is larger than the engine); any other is refused with its text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace potq {
namespace engine {

enum class Rule : uint8_t { kGpt2, kLlama3, kQwen2, kDigits, kDigitRuns };

class Splitter {
 public:
  Splitter() = default;
  Splitter(const Value& pre_tokenizer, const std::string& file);

  bool adds_space() const { return adds_space_; }  // a text gets a leading space if it has none

  // Calls word(piece) for every word of valid UTF-8, in order.
  template <class Word>
  void cut(std::string_view text, Word word) const {
    cut_from(0, text, word);
  }

 private:
  void read(const Value& pre_tokenizer, const std::string& file);

  template <class Word>
  void cut_from(size_t step, std::string_view text, Word& word) const {
    if (step == rules_.size()) return word(text);
    while (!text.empty()) {
      const size_t length = first_word(rules_[step], text);
      cut_from(step + 1, text.substr(0, length), word);
      text.remove_prefix(length);
    }
  }
  static size_t first_word(Rule rule, std::string_view text);

  std::vector<Rule> rules_;
  bool adds_space_ = false, byte_level_ = false;
};

// Whether NFC surely leaves the text as it is; it must be valid UTF-8.
bool surely_nfc(std::string_view text);

}  // namespace engine
}  // namespace potq
