// BPE from a tokenizer.json, token for token what the `tokenizers` library does with it: byte-level, or over characters with
// byte fallback (spaces.h), where a character without a token becomes the tokens <0x00> ... <0xFF> of its bytes. Other kinds of
// tokenizers (and the settings that nobody uses with these) are refused by name: added tokens that swallow the spaces beside
// them (lstrip, rstrip) or are whole words (single_word), normalizers but NFC.
//
// NFC (Qwen's) is not computed, which takes tables as large as the rest: text that it surely leaves alone is read, which is
// nearly all that people type; other text (combining marks, say) is refused, for the caller to normalize.
//
// Text is cut at added tokens, then into words by the pre-tokenizer (split.h), and the bytes of a word are merged, always the
// pair of least rank, the leftmost of equals. Tables are open-addressed: pair -> (rank, token), and bytes -> token while
// loading.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"
#include "spaces.h"
#include "split.h"

namespace potq {
namespace engine {

class Tokenizer {
 public:
  // Throws an Error that names the file and what it has that is not supported, or not right.
  explicit Tokenizer(const std::string& file);

  int size() const { return int(tokens_.size()); }  // ids are below

  // `special`: with the tokens that begin (and end) a text. Throws if the text is not UTF-8, or not in NFC where it must be.
  std::vector<int32_t> encode(std::string_view text, bool special = true) const;
  // The bytes of a token; none for special tokens and ids without one.
  std::string_view bytes(int32_t token) const;

 private:
  struct Token {
    uint32_t offset = 0, length = 0;           // what it is found by
    uint32_t written = 0, written_length = 0;  // the bytes that it stands for
    bool special = false, known = false;
  };
  struct Added {
    std::string content;
    int32_t id;
  };
  struct Merge {
    uint64_t pair = UINT64_MAX;
    uint32_t rank = 0, token = 0;
  };

  void read_model(const Value& model);
  void read_vocabulary(const Value& vocabulary);
  void read_merges(const Value& merges);
  bool decode_entry(std::string_view entry, std::string* bytes) const;
  void find_byte_tokens();
  void read_added(const Value& added);
  void read_normalizer(const Value& normalizer);
  void read_post_processor(const Value& processor);
  void read_template(const Value& processor);

  int32_t find_token(std::string_view bytes) const;  // -1: none
  const Merge* find_merge(int32_t left, int32_t right) const;
  void set_token(int32_t id, std::string_view bytes, bool special);
  std::vector<int32_t> symbols_of(std::string_view word) const;
  void add_word(std::string_view word, std::vector<int32_t>* ids) const;
  void add_text(std::string_view text, bool first, std::vector<int32_t>* ids) const;
  void add_segment(std::string_view text, bool first, const std::vector<Added>* added, std::vector<int32_t>* ids) const;

  std::string file_;
  std::string text_;                 // of all tokens
  std::vector<Token> tokens_;        // by id
  std::vector<int32_t> by_bytes_;    // a hash table of ids, of the vocabulary
  std::vector<Merge> merges_;        // a hash table
  std::vector<Added> early_, late_;  // added tokens: found before, and after normalization; longest first
  std::vector<int32_t> before_, behind_;
  int32_t byte_tokens_[256];
  Splitter splitter_;
  Spaces spaces_;
  bool nfc_ = false, whole_words_ = false, byte_fallback_ = false;
};

}  // namespace engine
}  // namespace potq
