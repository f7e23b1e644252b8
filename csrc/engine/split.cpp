#include "split.h"

#include <algorithm>
#include <iterator>

#include "error.h"
#include "unicode_tables.h"
#include "utf8.h"

namespace potq {
namespace engine {
namespace {

constexpr const char* kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

template <size_t Count>
bool within(const uint32_t (&ranges)[Count][2], uint32_t code) {
  const auto* next = std::upper_bound(std::begin(ranges), std::end(ranges), code,
                                      [](uint32_t value, const uint32_t (&range)[2]) { return value < range[0]; });
  return next != std::begin(ranges) && code < (*(next - 1))[1];
}

enum class Class : uint8_t { kLetter, kNumber, kSpace, kOther, kEnd };

Class class_of(uint32_t code) {
  if (code < 0x80) {
    if ((code | 0x20) >= 'a' && (code | 0x20) <= 'z') return Class::kLetter;
    if (code >= '0' && code <= '9') return Class::kNumber;
    return code == ' ' || (code >= 9 && code <= 13) ? Class::kSpace : Class::kOther;
  }
  if (within(kLetters, code)) return Class::kLetter;
  if (within(kNumbers, code)) return Class::kNumber;
  return within(kSpaces, code) ? Class::kSpace : Class::kOther;
}

// A place in a text, and what stands there.
struct Cursor {
  std::string_view text;
  size_t at = 0, next = 0;
  uint32_t code = 0;
  Class kind = Class::kEnd;

  Cursor(std::string_view all, size_t start) : text(all), next(start) { step(); }
  void step() {
    at = next;
    kind = Class::kEnd, code = 0;
    if (at >= text.size()) return;
    next = at + size_t(std::max(1, decode_utf8(text.data() + at, text.size() - at, &code)));
    kind = class_of(code);
  }
  bool newline() const { return kind == Class::kSpace && (code == '\r' || code == '\n'); }
  void skip(Class what) {
    while (kind == what) step();
  }
};

// 's 't 're 've 'm 'll 'd; U+017F is an s if cases do not count. Returns its length, or 0.
size_t contraction(std::string_view text, bool any_case) {
  if (text.size() < 2 || text[0] != '\'') return 0;
  if (any_case && text.substr(1, 2) == "\xc5\xbf") return 3;
  const auto at = [&](size_t i) {
    const char c = i < text.size() ? text[i] : '\0';
    return any_case && c >= 'A' && c <= 'Z' ? char(c | 0x20) : c;
  };
  const char a = at(1), b = at(2);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

// \s+(?!\S)|\s+ : all of them at the end of a text; else the last is left to the word behind it, unless it is alone.
size_t spaces(std::string_view text) {
  Cursor cursor(text, 0);
  size_t last = 0;
  while (cursor.kind == Class::kSpace) last = cursor.at, cursor.step();
  return cursor.kind == Class::kEnd || last == 0 ? cursor.at : last;
}

size_t gpt2_word(std::string_view text) {
  if (const size_t length = contraction(text, false)) return length;
  Cursor cursor(text, 0);
  if (cursor.code == ' ' && cursor.kind == Class::kSpace) cursor.step();
  if (cursor.kind == Class::kSpace || cursor.kind == Class::kEnd) return spaces(text);
  cursor.skip(cursor.kind);
  return cursor.at;
}

size_t llama3_word(std::string_view text, int most_digits) {
  if (const size_t length = contraction(text, true)) return length;
  Cursor cursor(text, 0);
  const Cursor start = cursor;
  if (start.kind != Class::kLetter && start.kind != Class::kNumber && !start.newline()) cursor.step();
  if (cursor.kind == Class::kLetter) {
    cursor.skip(Class::kLetter);
    return cursor.at;
  }
  cursor = start;
  if (start.kind == Class::kNumber) {
    for (int i = 0; i < most_digits && cursor.kind == Class::kNumber; i++) cursor.step();
    return cursor.at;
  }
  if (start.code == ' ') cursor.step();
  if (cursor.kind == Class::kOther) {
    cursor.skip(Class::kOther);
    while (cursor.newline()) cursor.step();
    return cursor.at;
  }
  cursor = start;  // spaces: through their last newline, if they have one
  size_t end = 0;
  for (; cursor.kind == Class::kSpace; cursor.step()) {
    if (cursor.newline()) end = cursor.next;
  }
  return end ? end : spaces(text);
}

// Digits, alone or in runs, and what is between them.
size_t digits(std::string_view text, bool alone) {
  const auto is_digit = [](const Cursor& cursor) { return cursor.kind != Class::kEnd && within(kDigits, cursor.code); };
  Cursor cursor(text, 0);
  const bool wanted = is_digit(cursor);
  cursor.step();
  while (!(wanted && alone) && cursor.kind != Class::kEnd && is_digit(cursor) == wanted) cursor.step();
  return cursor.at;
}

bool flag(const Value& value, bool otherwise) { return value.null() ? otherwise : value.is(Kind::kTrue); }

std::string_view text_of(const Value& value) { return value.is(Kind::kString) ? value.string() : std::string_view(); }

}  // namespace

bool surely_nfc(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    uint32_t code = 0;
    at += size_t(std::max(1, decode_utf8(text.data() + at, text.size() - at, &code)));
    if (code >= 0x300 && within(kUnsafe, code)) return false;
  }
  return true;
}

Splitter::Splitter(const Value& pre_tokenizer, const std::string& file) {
  read(pre_tokenizer, file);
  if (!byte_level_) fail("%s: the tokenizer is not byte-level, the only kind that the engine reads", file.c_str());
}

void Splitter::read(const Value& pre_tokenizer, const std::string& file) {
  const std::string_view type = text_of(pre_tokenizer["type"]);
  if (byte_level_) fail("%s: the pre-tokenizer goes on behind ByteLevel, which the engine does not read", file.c_str());
  if (type == "Sequence") {
    const Value parts = pre_tokenizer["pretokenizers"];
    if (!parts.is(Kind::kArray) || parts.size() > 8) fail("%s: a Sequence has no list of pre-tokenizers", file.c_str());
    for (Value part = parts.first(); part; part = part.next()) {
      if (text_of(part["type"]) == "Sequence") fail("%s: a Sequence holds another", file.c_str());
      read(part, file);
    }
  } else if (type == "ByteLevel") {
    byte_level_ = true;
    adds_space_ = flag(pre_tokenizer["add_prefix_space"], true);
    if (adds_space_ && !rules_.empty())
      fail("%s: ByteLevel adds a space behind other pre-tokenizers, which the engine does not do", file.c_str());
    if (flag(pre_tokenizer["use_regex"], true)) rules_.push_back(Rule::kGpt2);
  } else if (type == "Digits") {
    rules_.push_back(flag(pre_tokenizer["individual_digits"], false) ? Rule::kDigits : Rule::kDigitRuns);
  } else if (type == "Split") {
    const std::string_view pattern = text_of(pre_tokenizer["pattern"]["Regex"]);
    const bool known = pattern == kGpt2Pattern || pattern == kLlama3Pattern || pattern == kQwen2Pattern;
    const bool isolated = text_of(pre_tokenizer["behavior"]) == "Isolated" && !flag(pre_tokenizer["invert"], false);
    const bool removed = text_of(pre_tokenizer["behavior"]) == "Removed" && flag(pre_tokenizer["invert"], false);
    if (!known || !(isolated || removed))  // the patterns match everything, so that both are the same
      fail("%s: the pre-tokenizer splits by the pattern %s, which the engine does not know", file.c_str(),
           quoted(pattern).c_str());
    rules_.push_back(pattern == kGpt2Pattern ? Rule::kGpt2 : pattern == kLlama3Pattern ? Rule::kLlama3 : Rule::kQwen2);
  } else {
    fail("%s: the pre-tokenizer is %s; the engine reads byte-level ones (ByteLevel, Split, Digits)", file.c_str(),
         type.empty() ? "none" : quoted(type).c_str());
  }
}

size_t Splitter::first_word(Rule rule, std::string_view text) {
  switch (rule) {
    case Rule::kGpt2: return gpt2_word(text);
    case Rule::kLlama3: return llama3_word(text, 3);
    case Rule::kQwen2: return llama3_word(text, 1);
    case Rule::kDigits: return digits(text, true);
    default: return digits(text, false);
  }
}

}  // namespace engine
}  // namespace potq
