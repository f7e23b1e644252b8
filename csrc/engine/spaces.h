// How tokenizers over characters with byte fallback (those of Llama 2 and Mistral) write spaces: as U+2581, one more in front.
// It is a normalizer's work (Prepend, Replace), which sees all between the added tokens that are found before it, or a
// pre-tokenizer's (Metaspace).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "json.h"

namespace potq {
namespace engine {

constexpr std::string_view kMark = "\xe2\x96\x81";

std::string with_marks(std::string_view text);     // a mark for every space
std::string with_spaces(std::string_view marked);  // and back

class Spaces {
 public:
  Spaces() = default;
  // Throws an Error that names what else the file has.
  Spaces(const Value& normalizer, const Value& pre_tokenizer, const std::string& file);

  std::string normalize(std::string_view text) const;
  // `first`: the text to encode begins with it.
  std::string pre_tokenize(std::string_view text, bool first) const;
  bool cuts() const { return cuts_; }  // a word ends before every mark

 private:
  enum class Front : uint8_t { kNever, kFirst, kAlways };

  void read_normalizer(const Value& normalizer, const std::string& file);
  void read_pre_tokenizer(const Value& pre_tokenizer, const std::string& file);

  bool prepends_ = false, replaces_ = false;  // the normalizer
  bool metaspace_ = false, cuts_ = false;     // the pre-tokenizer
  Front front_ = Front::kNever;
};

}  // namespace engine
}  // namespace potq
