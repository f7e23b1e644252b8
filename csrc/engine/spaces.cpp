#include "spaces.h"

#include <algorithm>

#include "error.h"

namespace potq {
namespace engine {
namespace {

std::string_view text_of(const Value& value) { return value.is(Kind::kString) ? value.string() : std::string_view(); }

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  for (size_t at = 0; at < text.size();) {
    const size_t found = std::min(text.find(from, at), text.size());
    result.append(text.substr(at, found - at));
    if (found < text.size()) result.append(to);
    at = found + from.size();
  }
  return result;
}

}  // namespace

std::string with_marks(std::string_view text) { return replaced(text, " ", kMark); }
std::string with_spaces(std::string_view marked) { return replaced(marked, kMark, " "); }

Spaces::Spaces(const Value& normalizer, const Value& pre_tokenizer, const std::string& file) {
  read_normalizer(normalizer, file);
  read_pre_tokenizer(pre_tokenizer, file);
  if (metaspace_ && (prepends_ || replaces_))
    fail("%s: the normalizer and the pre-tokenizer both write spaces, which the engine does not do", file.c_str());
}

void Spaces::read_normalizer(const Value& normalizer, const std::string& file) {
  if (normalizer.null()) return;
  const std::string_view type = text_of(normalizer["type"]);
  const Value parts = normalizer["normalizers"];
  if (type == "Sequence" && parts.is(Kind::kArray) && parts.size() <= 8) {
    for (Value part = parts.first(); part; part = part.next()) {
      if (text_of(part["type"]) == "Sequence") fail("%s: a Sequence of normalizers holds another", file.c_str());
      read_normalizer(part, file);
    }
  } else if (type == "Prepend" && text_of(normalizer["prepend"]) == kMark && !prepends_) {
    prepends_ = true;
  } else if (type == "Replace" && text_of(normalizer["pattern"]["String"]) == " " && text_of(normalizer["content"]) == kMark) {
    replaces_ = true;
  } else {
    fail("%s: the normalizer is %s; the engine knows Prepend and Replace, of spaces by U+2581", file.c_str(),
         quoted(type).c_str());
  }
}

void Spaces::read_pre_tokenizer(const Value& pre_tokenizer, const std::string& file) {
  if (pre_tokenizer.null()) return;
  const std::string_view type = text_of(pre_tokenizer["type"]), scheme = text_of(pre_tokenizer["prepend_scheme"]);
  if (type != "Metaspace" || text_of(pre_tokenizer["replacement"]) != kMark)
    fail("%s: the pre-tokenizer is %s; beside byte_fallback the engine knows Metaspace and none", file.c_str(),
         quoted(type).c_str());
  if (scheme != "always" && scheme != "first" && scheme != "never")
    fail("%s: Metaspace has the prepend_scheme %s, which the engine does not know", file.c_str(), quoted(scheme).c_str());
  metaspace_ = true;
  cuts_ = !pre_tokenizer["split"].is(Kind::kFalse);
  front_ = scheme == "always" ? Front::kAlways : scheme == "first" ? Front::kFirst : Front::kNever;
}

std::string Spaces::normalize(std::string_view text) const {
  if (text.empty()) return {};
  const std::string marked = replaces_ ? with_marks(text) : std::string(text);
  return prepends_ ? std::string(kMark) + marked : marked;
}

std::string Spaces::pre_tokenize(std::string_view text, bool first) const {
  if (!metaspace_) return std::string(text);
  const std::string marked = with_marks(text);
  const bool wanted = front_ == Front::kAlways || (front_ == Front::kFirst && first);
  return wanted && marked.compare(0, kMark.size(), kMark) != 0 ? std::string(kMark) + marked : marked;
}

}  // namespace engine
}  // namespace potq
