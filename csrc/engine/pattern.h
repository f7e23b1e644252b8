// The patterns of a quantization config (targets), matched as Python's re would: the pattern against a module's whole dotted
// name or a dotted suffix of it.
//
// What is known: literals, escapes (\. \- \d \w), . [classes] (groups) (?:groups) | * + ? ^ $. Anything else is refused by
// name, never guessed. The match is Thompson's: a set of states stepped through the name, linear in pattern times name.
// Rejected: std::regex, which backtracks recursively; a hostile pattern ends it by stack overflow, or never.
#pragma once

#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace potq {
namespace engine {

class Pattern {
 public:
  // Throws an Error if the pattern is not understood; `where` names the file and key.
  Pattern(std::string_view text, const std::string& where);
  bool matches(std::string_view name) const;

 private:
  friend class PatternParser;
  enum Op : uint8_t { kSet, kSplit, kJump, kStart, kEnd, kAccept };
  struct State {
    Op op;
    uint32_t to = 0, other = 0;
    uint32_t set = 0;
  };
  bool matches_whole(std::string_view name, bool from_start) const;
  void follow(uint32_t state, bool at_start, bool at_end, std::vector<uint32_t>* states, std::vector<uint8_t>* seen) const;

  std::vector<State> states_;
  std::vector<std::bitset<256>> sets_;
  uint32_t start_ = 0;
};

}  // namespace engine
}  // namespace potq
