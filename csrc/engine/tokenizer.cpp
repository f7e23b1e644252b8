#include "tokenizer.h"

#include <algorithm>
#include <cstring>
#include <queue>

#include "error.h"
#include "file.h"
#include "utf8.h"

namespace potq {
namespace engine {
namespace {

constexpr uint64_t kMaxBytes = 64 << 20;
constexpr uint32_t kMaxValues = 8 << 20;
constexpr int64_t kMaxTokens = 1 << 22;
constexpr size_t kMaxTemplate = 64;  // tokens before and behind a text

uint64_t hash(std::string_view bytes) {
  uint64_t h = 0xcbf29ce484222325u;
  for (const char c : bytes) h = (h ^ uint64_t(static_cast<unsigned char>(c))) * 0x100000001b3u;
  return h ^ h >> 29;
}

uint64_t hash(uint64_t pair) {
  pair *= 0x9e3779b97f4a7c15u;
  return pair ^ pair >> 32;
}

size_t table_size(size_t entries) {
  size_t size = 16;
  while (size < 2 * entries) size *= 2;
  return size;
}

// The code point that stands for a byte in a vocabulary: itself if it can be seen, else one of U+0100, U+0101, ...
uint32_t shown(int byte) {
  const auto visible = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
  if (visible(byte)) return uint32_t(byte);
  uint32_t code = 0x100;
  for (int b = 0; b < byte; b++) code += !visible(b);
  return code;
}

struct ByteAlphabet {
  int16_t byte_of[0x144];
  ByteAlphabet() {
    std::fill(std::begin(byte_of), std::end(byte_of), int16_t(-1));
    for (int byte = 0; byte < 256; byte++) byte_of[shown(byte)] = int16_t(byte);
  }
};

// The bytes that an entry of a byte-level vocabulary stands for; false if it is not written in the alphabet.
bool decode_byte_level(std::string_view entry, std::string* bytes) {
  static const ByteAlphabet alphabet;
  bytes->clear();
  for (size_t at = 0; at < entry.size();) {
    uint32_t code = 0;
    const int length = decode_utf8(entry.data() + at, entry.size() - at, &code);
    if (!length || code >= 0x144 || alphabet.byte_of[code] < 0) return false;
    bytes->push_back(char(alphabet.byte_of[code]));
    at += size_t(length);
  }
  return true;
}

// The byte of <0x00> ... <0xFF>, or -1.
int fallback_byte(std::string_view entry) {
  if (entry.size() != 6 || entry.substr(0, 3) != "<0x" || entry[5] != '>') return -1;
  int byte = 0;
  for (const char c : entry.substr(3, 2)) {
    const char* const digits = "0123456789ABCDEF";
    const char* const found = std::strchr(digits, c);
    if (!found || !c) return -1;
    byte = byte * 16 + int(found - digits);
  }
  return byte;
}

std::string_view text_of(const Value& value) { return value.is(Kind::kString) ? value.string() : std::string_view(); }

}  // namespace

Tokenizer::Tokenizer(const std::string& file) : file_(file) {
  const Document document(file, read_text(file, kMaxBytes), kMaxValues);
  const Value root = document.root();
  read_model(root["model"]);
  if (byte_fallback_) {
    spaces_ = Spaces(root["normalizer"], root["pre_tokenizer"], file_);
  } else {
    read_normalizer(root["normalizer"]);
    splitter_ = Splitter(root["pre_tokenizer"], file_);
  }
  read_added(root["added_tokens"]);
  read_post_processor(root["post_processor"]);
}

void Tokenizer::read_model(const Value& model) {
  const std::string_view type = text_of(model["type"]);
  if (!type.empty() && type != "BPE")
    fail("%s: the tokenizer is %s; the engine reads BPE", file_.c_str(), quoted(type).c_str());
  byte_fallback_ = model["byte_fallback"].is(Kind::kTrue);  // no text is unknown then
  for (const char* key : {"dropout", "unk_token"}) {
    if (!model[key].null() && !(byte_fallback_ && !std::strcmp(key, "unk_token")))
      fail("%s: the tokenizer has %s; the engine reads byte-level BPE without", file_.c_str(), key);
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!text_of(model[key]).empty()) fail("%s: the tokenizer has %s; the engine reads BPE without", file_.c_str(), key);
  }
  whole_words_ = model["ignore_merges"].is(Kind::kTrue);
  read_vocabulary(model["vocab"]);
  find_byte_tokens();
  read_merges(model["merges"]);
}

void Tokenizer::set_token(int32_t id, std::string_view bytes, bool special) {
  if (size_t(id) >= tokens_.size()) tokens_.resize(size_t(id) + 1);
  Token token{uint32_t(text_.size()), uint32_t(bytes.size()), uint32_t(text_.size()), uint32_t(bytes.size()), special, true};
  text_.append(bytes);
  if (byte_fallback_ && !special) {
    const int byte = fallback_byte(bytes);
    const std::string written = byte < 0 ? with_spaces(bytes) : std::string(1, char(byte));
    token.written = uint32_t(text_.size()), token.written_length = uint32_t(written.size());
    text_.append(written);
  }
  tokens_[size_t(id)] = token;
}

// The bytes that an entry of the vocabulary is found by; false if text cannot become it.
bool Tokenizer::decode_entry(std::string_view entry, std::string* bytes) const {
  if (!byte_fallback_) return decode_byte_level(entry, bytes);
  bytes->assign(entry);
  return true;
}

void Tokenizer::read_vocabulary(const Value& vocabulary) {
  if (!vocabulary.is(Kind::kObject)) fail("%s has no vocabulary; copy it again", file_.c_str());
  by_bytes_.assign(table_size(vocabulary.size()), -1);
  std::string bytes;
  for (Value entry = vocabulary.first(); entry; entry = entry.next()) {
    // as many ids as entries, give or take the added tokens: a table by id must not be larger than the file
    if (!entry.is(Kind::kInteger) || entry.integer() < 0 || entry.integer() >= 2 * int64_t(vocabulary.size()) + 4096 ||
        entry.integer() >= kMaxTokens)
      fail("%s: %s has an invalid id", file_.c_str(), quoted(entry.key()).c_str());
    const int32_t id = int32_t(entry.integer());
    if (size_t(id) < tokens_.size() && tokens_[size_t(id)].known) fail("%s gives the id %d twice", file_.c_str(), id);
    if (!decode_entry(entry.key(), &bytes)) {  // an added token, or nothing that text can become
      set_token(id, entry.key(), false);
      continue;
    }
    set_token(id, bytes, false);
    size_t slot = hash(bytes) & (by_bytes_.size() - 1);
    for (; by_bytes_[slot] >= 0; slot = (slot + 1) & (by_bytes_.size() - 1)) {
      const Token& other = tokens_[size_t(by_bytes_[slot])];
      if (text_.compare(other.offset, other.length, bytes) == 0)
        fail("%s has the token %s twice", file_.c_str(), quoted(entry.key()).c_str());
    }
    by_bytes_[slot] = id;
  }
}

void Tokenizer::find_byte_tokens() {
  for (int byte = 0; byte < 256; byte++) {
    const char c = char(byte);
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    byte_tokens_[byte] = find_token(byte_fallback_ ? std::string_view(name) : std::string_view(&c, 1));
    if (byte_fallback_ && byte_tokens_[byte] < 0) fail("%s has byte_fallback, but no token %s", file_.c_str(), name);
  }
}

void Tokenizer::read_merges(const Value& merges) {
  if (!merges.is(Kind::kArray)) fail("%s has no merges; copy it again", file_.c_str());
  merges_.assign(table_size(merges.size()), Merge());
  uint32_t rank = 0;
  std::string left, right;
  for (Value merge = merges.first(); merge; merge = merge.next(), rank++) {
    std::string_view a, b;  // "a b", or ["a", "b"]
    if (merge.is(Kind::kArray) && merge.size() == 2) {
      a = text_of(merge.first()), b = text_of(merge.first().next());
    } else if (merge.is(Kind::kString)) {
      const size_t space = merge.string().find(' ');
      if (space != std::string_view::npos) a = merge.string().substr(0, space), b = merge.string().substr(space + 1);
    }
    const bool good = !a.empty() && !b.empty() && decode_entry(a, &left) && decode_entry(b, &right);
    const int32_t first = good ? find_token(left) : -1, second = good ? find_token(right) : -1;
    const int32_t whole = good ? find_token(left + right) : -1;
    if (first < 0 || second < 0 || whole < 0)
      fail("%s: merge %u (%s %s) is not of tokens; the file is damaged, copy it again", file_.c_str(), rank, quoted(a).c_str(),
           quoted(b).c_str());
    const uint64_t pair = uint64_t(first) << 32 | uint64_t(second);
    size_t slot = hash(pair) & (merges_.size() - 1);
    while (merges_[slot].pair != UINT64_MAX && merges_[slot].pair != pair) slot = (slot + 1) & (merges_.size() - 1);
    merges_[slot] = {pair, rank, uint32_t(whole)};
  }
}

void Tokenizer::read_added(const Value& added) {
  if (added.null()) return;
  if (!added.is(Kind::kArray)) fail("%s: added_tokens is not a list", file_.c_str());
  int64_t most = int64_t(tokens_.size()) + 2 * int64_t(added.size()) + 4096;
  if (most > kMaxTokens) most = kMaxTokens;
  for (Value token = added.first(); token; token = token.next()) {
    const Value id = token["id"];
    const std::string_view content = text_of(token["content"]);
    if (!id.is(Kind::kInteger) || id.integer() < 0 || id.integer() >= most || content.empty())
      fail("%s: an added token has no id and content; copy it again", file_.c_str());
    for (const char* key : {"single_word", "lstrip", "rstrip"}) {
      if (token[key].is(Kind::kTrue))
        fail("%s: the added token %s has %s, which the engine does not do", file_.c_str(), quoted(content).c_str(), key);
    }
    set_token(int32_t(id.integer()), content, token["special"].is(Kind::kTrue));
    const bool late = token["normalized"].is(Kind::kTrue);
    const std::string found_as = late && byte_fallback_ ? spaces_.normalize(content) : std::string(content);
    (late ? late_ : early_).push_back({found_as, int32_t(id.integer())});
  }
  for (std::vector<Added>* list : {&early_, &late_}) {
    std::stable_sort(list->begin(), list->end(),
                     [](const Added& a, const Added& b) { return a.content.size() > b.content.size(); });
  }
}

void Tokenizer::read_normalizer(const Value& normalizer) {
  if (normalizer.null()) return;
  const std::string_view type = text_of(normalizer["type"]);
  if (type != "NFC") fail("%s: the normalizer is %s; the engine knows NFC and none", file_.c_str(), quoted(type).c_str());
  nfc_ = true;
}

void Tokenizer::read_post_processor(const Value& processor) {
  if (processor.null()) return;
  const std::string_view type = text_of(processor["type"]);
  if (type == "ByteLevel") return;  // offsets only
  if (type == "TemplateProcessing") return read_template(processor);
  const Value parts = processor["processors"];
  if (type != "Sequence" || !parts.is(Kind::kArray))
    fail("%s: the post-processor is %s; the engine knows TemplateProcessing and ByteLevel", file_.c_str(),
         quoted(type).c_str());
  for (Value part = parts.first(); part; part = part.next()) {
    if (text_of(part["type"]) == "Sequence") fail("%s: a Sequence of post-processors holds another", file_.c_str());
    read_post_processor(part);
  }
}

void Tokenizer::read_template(const Value& processor) {
  const Value single = processor["single"];
  if (!single.is(Kind::kArray)) fail("%s: the post-processor has no template", file_.c_str());
  if (single.size() > kMaxTemplate) fail("%s: the post-processor's template is too long", file_.c_str());
  std::vector<int32_t>*side = &before_, behind;
  bool text = false;
  for (Value piece = single.first(); piece; piece = piece.next()) {
    if (piece["Sequence"]) {
      if (text) fail("%s: the post-processor's template has the text twice", file_.c_str());
      text = true, side = &behind;
      continue;
    }
    const Value special = processor["special_tokens"][text_of(piece["SpecialToken"]["id"])]["ids"];
    if (!special.is(Kind::kArray)) fail("%s: the post-processor's template names an unknown token", file_.c_str());
    for (Value id = special.first(); id; id = id.next()) {
      if (!id.is(Kind::kInteger) || id.integer() < 0 || id.integer() >= size())
        fail("%s: the post-processor's template has an invalid id", file_.c_str());
      side->push_back(int32_t(id.integer()));
    }
  }
  behind_.insert(behind_.begin(), behind.begin(), behind.end());
  if (before_.size() + behind_.size() > kMaxTemplate) fail("%s: the post-processor's template is too long", file_.c_str());
  if (!text) fail("%s: the post-processor's template has no text", file_.c_str());
}

std::string_view Tokenizer::bytes(int32_t token) const {
  if (token < 0 || token >= size() || tokens_[size_t(token)].special) return {};
  const Token& entry = tokens_[size_t(token)];
  return std::string_view(text_).substr(entry.written, entry.written_length);
}

int32_t Tokenizer::find_token(std::string_view bytes) const {
  for (size_t slot = hash(bytes) & (by_bytes_.size() - 1); by_bytes_[slot] >= 0; slot = (slot + 1) & (by_bytes_.size() - 1)) {
    const Token& entry = tokens_[size_t(by_bytes_[slot])];
    if (std::string_view(text_).substr(entry.offset, entry.length) == bytes) return by_bytes_[slot];
  }
  return -1;
}

const Tokenizer::Merge* Tokenizer::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = uint64_t(left) << 32 | uint64_t(right);
  for (size_t slot = hash(pair) & (merges_.size() - 1); merges_[slot].pair != UINT64_MAX;
       slot = (slot + 1) & (merges_.size() - 1)) {
    if (merges_[slot].pair == pair) return &merges_[slot];
  }
  return nullptr;
}

// Of bytes, or of characters. A byte that a byte-level vocabulary lacks vanishes.
std::vector<int32_t> Tokenizer::symbols_of(std::string_view word) const {
  std::vector<int32_t> symbols;
  symbols.reserve(word.size());
  for (size_t at = 0; at < word.size();) {
    uint32_t code = 0;
    const int length = byte_fallback_ ? std::max(1, decode_utf8(word.data() + at, word.size() - at, &code)) : 1;
    const int32_t token = byte_fallback_ ? find_token(word.substr(at, size_t(length))) : -1;
    if (token >= 0) symbols.push_back(token);
    for (int i = 0; token < 0 && i < length; i++) {
      const int32_t byte = byte_tokens_[static_cast<unsigned char>(word[at + size_t(i)])];
      if (byte >= 0) symbols.push_back(byte);
    }
    at += size_t(length);
  }
  return symbols;
}

// Merges by a queue of pairs: n log n, however long the word.
void Tokenizer::add_word(std::string_view word, std::vector<int32_t>* ids) const {
  if (whole_words_) {
    const int32_t token = find_token(word);
    if (token >= 0) return ids->push_back(token);
  }
  struct Symbol {
    int32_t token, before, next;  // token -1: merged into the one before
  };
  struct Pair {
    uint32_t rank;
    int32_t at;
    int32_t token;
    bool operator<(const Pair& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  std::vector<Symbol> symbols;
  std::priority_queue<Pair> queue;
  const auto offer = [&](int32_t at) {
    if (at < 0 || symbols[size_t(at)].next < 0) return;
    const Symbol& left = symbols[size_t(at)];
    const Merge* merge = find_merge(left.token, symbols[size_t(left.next)].token);
    if (merge) queue.push({merge->rank, at, int32_t(merge->token)});
  };
  for (const int32_t token : symbols_of(word)) {
    const int32_t at = int32_t(symbols.size());
    symbols.push_back({token, at - 1, at + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  const int32_t count = int32_t(symbols.size());
  for (int32_t i = 0; i < count; i++) offer(i);
  while (!queue.empty()) {
    const Pair pair = queue.top();
    queue.pop();
    Symbol& left = symbols[size_t(pair.at)];
    if (left.token < 0 || left.next < 0) continue;
    Symbol& right = symbols[size_t(left.next)];
    const Merge* merge = find_merge(left.token, right.token);
    if (!merge || int32_t(merge->token) != pair.token) continue;  // one of the two has changed
    left.token = pair.token;
    right.token = -1;
    left.next = right.next;
    if (left.next >= 0) symbols[size_t(left.next)].before = pair.at;
    offer(left.before);
    offer(pair.at);
  }
  for (int32_t i = 0; i >= 0; i = symbols[size_t(i)].next) ids->push_back(symbols[size_t(i)].token);
}

// Text without added tokens.
void Tokenizer::add_text(std::string_view text, bool first, std::vector<int32_t>* ids) const {
  if (text.empty()) return;
  if (byte_fallback_) {
    const std::string marked = spaces_.pre_tokenize(text, first);
    for (std::string_view left = marked; !left.empty();) {
      const size_t length = spaces_.cuts() ? std::min(left.find(kMark, 1), left.size()) : left.size();
      add_word(left.substr(0, length), ids);
      left.remove_prefix(length);
    }
    return;
  }
  std::string spaced;
  if (splitter_.adds_space() && text[0] != ' ') spaced = " " + std::string(text), text = spaced;
  splitter_.cut(text, [&](std::string_view word) { add_word(word, ids); });
}

// Cuts at the leftmost added token, the longest of those that begin there. `first`: the text to encode begins with it.
void Tokenizer::add_segment(std::string_view text, bool first, const std::vector<Added>* added,
                            std::vector<int32_t>* ids) const {
  bool first_bytes[256] = {};
  for (const Added& token : *added) first_bytes[static_cast<unsigned char>(token.content[0])] = true;
  const auto plain = [&](std::string_view part) {
    const bool begins = first && part.data() == text.data();
    if (added != &early_)
      add_text(part, begins, ids);
    else if (byte_fallback_)
      add_segment(spaces_.normalize(part), begins, &late_, ids);
    else
      add_segment(part, begins, &late_, ids);
  };
  size_t start = 0;
  for (size_t at = 0; at < text.size();) {
    const Added* found = nullptr;
    if (first_bytes[static_cast<unsigned char>(text[at])]) {
      for (const Added& token : *added) {
        if (text.compare(at, token.content.size(), token.content) == 0) {
          found = &token;
          break;
        }
      }
    }
    if (!found) {
      at++;
      continue;
    }
    plain(text.substr(start, at - start));
    ids->push_back(found->id);
    start = at += found->content.size();
  }
  plain(text.substr(start));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool special) const {
  if (text.size() >= INT32_MAX / 2) fail("the text has %zu bytes, which is too long", text.size());
  for (size_t at = 0; at < text.size();) {
    uint32_t code;
    const int length = decode_utf8(text.data() + at, text.size() - at, &code);
    if (!length) fail("the text is not valid UTF-8 (byte %zu)", at);
    at += size_t(length);
  }
  if (nfc_ && !surely_nfc(text))
    fail("the text is not in Unicode's normal form NFC, which this tokenizer demands; normalize it");
  std::vector<int32_t> ids;
  if (special) ids = before_;
  add_segment(text, true, &early_, &ids);
  if (special) ids.insert(ids.end(), behind_.begin(), behind_.end());
  return ids;
}

}  // namespace engine
}  // namespace potq
