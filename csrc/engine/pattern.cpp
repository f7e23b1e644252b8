#include "pattern.h"

#include "error.h"

namespace potq {
namespace engine {
namespace {
constexpr size_t kMaxLength = 1024;
constexpr int kMaxDepth = 32;
}  // namespace

// Recursive descent. A piece is a range of states that is entered at `start` and left through the kJump at `end`.
class PatternParser {
 public:
  PatternParser(Pattern& pattern, std::string_view text, const std::string& where)
      : pattern_(pattern), text_(text), where_(where) {}

  void run() {
    if (text_.size() > kMaxLength) wrong("is too long");
    const Piece whole = alternatives(0);
    if (at_ != text_.size()) wrong("has an unmatched ')'");
    pattern_.states_[whole.end].op = Pattern::kAccept;
    pattern_.start_ = whole.start;
  }

 private:
  struct Piece {
    uint32_t start, end;
  };

  [[noreturn]] void wrong(const char* what) const {
    fail("%s: the pattern %s %s; the engine knows literals, escapes, . [] () | * + ? ^ $", where_.c_str(),
         quoted(text_).c_str(), what);
  }
  int peek() const { return at_ < text_.size() ? static_cast<unsigned char>(text_[at_]) : -1; }
  uint32_t add(Pattern::Op op, uint32_t to = 0, uint32_t other = 0) {
    pattern_.states_.push_back({op, to, other, 0});
    return uint32_t(pattern_.states_.size() - 1);
  }
  void connect(uint32_t end, uint32_t to) { pattern_.states_[end].to = to; }

  Piece alternatives(int depth) {
    if (depth > kMaxDepth) wrong("is nested too deeply");
    Piece result = sequence(depth);
    while (peek() == '|') {
      at_++;
      const Piece other = sequence(depth);
      const uint32_t end = add(Pattern::kJump), split = add(Pattern::kSplit, result.start, other.start);
      connect(result.end, end), connect(other.end, end);
      result = {split, end};
    }
    return result;
  }

  Piece sequence(int depth) {
    const uint32_t start = add(Pattern::kJump);
    uint32_t end = start;
    while (peek() >= 0 && peek() != '|' && peek() != ')') {
      const Piece next = repeated(depth);
      connect(end, next.start);
      end = next.end;
    }
    return {start, end};
  }

  Piece repeated(int depth) {
    const Piece piece = atom(depth);
    const int c = peek();
    if (c == '{') wrong("has a repetition {}");
    if (c != '*' && c != '+' && c != '?') return piece;
    at_++;
    if (peek() == '?') at_++;  // lazy: the same set of names
    if (peek() == '*' || peek() == '+' || peek() == '?' || peek() == '{') wrong("has a repetition of a repetition");
    const uint32_t end = add(Pattern::kJump), split = add(Pattern::kSplit, piece.start, end);
    connect(piece.end, c == '?' ? end : split);
    return {c == '+' ? piece.start : split, end};
  }

  Piece atom(int depth) {
    const int c = peek();
    at_++;
    std::bitset<256> set;
    switch (c) {
      case '(': {
        if (peek() == '?') {
          if (text_.substr(at_, 2) != "?:") wrong("has a group (?...)");
          at_ += 2;
        }
        const Piece piece = alternatives(depth + 1);
        if (peek() != ')') wrong("has an unmatched '('");
        at_++;
        return piece;
      }
      case '^': return single(Pattern::kStart);
      case '$': return single(Pattern::kEnd);
      case '*':
      case '+':
      case '?':
      case '{': wrong("has a repetition of nothing");
      case '.': set.set(), set.reset('\n'); break;
      case '[': set = bracket(); break;
      case '\\': set = escape(); break;
      default: set.set(size_t(c));
    }
    const Piece piece = single(Pattern::kSet);
    pattern_.states_[piece.start].set = uint32_t(pattern_.sets_.size());
    pattern_.sets_.push_back(set);
    return piece;
  }

  Piece single(Pattern::Op op) {
    const uint32_t end = add(Pattern::kJump);
    return {add(op, end), end};
  }

  static bool is_digit(int c) { return c >= '0' && c <= '9'; }
  static bool is_letter(int c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

  std::bitset<256> escape() {
    std::bitset<256> set;
    const int c = peek();
    at_++;
    if (c == 'd' || c == 'w') {
      for (int i = 0; i < 128; i++) set[size_t(i)] = is_digit(i) || (c == 'w' && (is_letter(i) || i == '_'));
    } else if (c < 0 || is_digit(c) || is_letter(c)) {
      wrong("has an escape that the engine does not know");
    } else {
      set.set(size_t(c));
    }
    return set;
  }

  std::bitset<256> bracket() {
    std::bitset<256> set;
    const bool negated = peek() == '^';
    at_ += negated;
    for (bool first = true; peek() != ']' || first; first = false) {
      const int c = peek();
      if (c < 0) wrong("has an unmatched '['");
      at_++;
      if (c == '\\') {
        set |= escape();
      } else if (peek() == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
        at_++;
        const int last = peek();
        at_++;
        if (last < c || last == '\\') wrong("has a bad range");
        for (int i = c; i <= last; i++) set.set(size_t(i));
      } else {
        set.set(size_t(c));
      }
    }
    at_++;
    return negated ? ~set : set;
  }

  Pattern& pattern_;
  const std::string_view text_;
  const std::string& where_;
  size_t at_ = 0;
};

Pattern::Pattern(std::string_view text, const std::string& where) { PatternParser(*this, text, where).run(); }

bool Pattern::matches(std::string_view name) const {
  if (matches_whole(name, true)) return true;
  for (size_t i = 0; i < name.size(); i++) {
    if (name[i] == '.' && matches_whole(name.substr(i + 1), false)) return true;
  }
  return false;
}

// States that consume something and are reached from `state` without consuming.
void Pattern::follow(uint32_t state, bool at_start, bool at_end, std::vector<uint32_t>* states,
                     std::vector<uint8_t>* seen) const {
  std::vector<uint32_t> waiting{state};
  while (!waiting.empty()) {
    const uint32_t index = waiting.back();
    waiting.pop_back();
    if ((*seen)[index]) continue;
    (*seen)[index] = 1;
    const State& s = states_[index];
    if (s.op == kSet || s.op == kAccept) states->push_back(index);
    if (s.op == kJump || s.op == kSplit || (s.op == kStart && at_start) || (s.op == kEnd && at_end)) waiting.push_back(s.to);
    if (s.op == kSplit) waiting.push_back(s.other);
  }
}

bool Pattern::matches_whole(std::string_view name, bool from_start) const {
  std::vector<uint32_t> current, next;
  std::vector<uint8_t> seen(states_.size());
  follow(start_, from_start, name.empty(), &current, &seen);
  for (size_t i = 0; i < name.size(); i++) {
    next.clear();
    seen.assign(states_.size(), 0);
    for (const uint32_t index : current) {
      const State& s = states_[index];
      if (s.op == kSet && sets_[s.set][static_cast<unsigned char>(name[i])])
        follow(s.to, false, i + 1 == name.size(), &next, &seen);
    }
    current.swap(next);
  }
  for (const uint32_t index : current) {
    if (states_[index].op == kAccept) return true;
  }
  return false;
}

}  // namespace engine
}  // namespace potq
