// A strict JSON reader (RFC 8259) for files that nobody vouches for.
//
// Limits: the caller's on bytes and values, kMaxDepth on nesting. No comments, no trailing commas, no NaN; strings are valid
// UTF-8 without lone surrogates; no key stands twice in an object of up to kCheckedKeys keys (whoever reads a larger one puts
// the keys in a table of his own, and looks there).
//
// The text is unescaped in place, where it can only shrink, and a value is a node of 24 bytes with offsets into it, children
// in a list: a tokenizer's 250,000 values cost 6 MB for the moment they are needed. Rejected: a library (a megabyte of
// templates), and maps and strings for every value (ten times the memory).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace potq {
namespace engine {

class Document;

enum class Kind : uint8_t { kNull, kFalse, kTrue, kInteger, kNumber, kString, kArray, kObject };

// A value of a document, which must outlive it; or nothing (a key that is not there).
class Value {
 public:
  Value() = default;
  Value(const Document* document, uint32_t node) : document_(document), node_(node) {}

  explicit operator bool() const { return document_ != nullptr; }
  Kind kind() const;
  bool is(Kind kind) const { return document_ && this->kind() == kind; }
  bool null() const { return !document_ || kind() == Kind::kNull; }  // absent counts
  std::string_view key() const;                                      // in its object

  // The kind must be right.
  std::string_view string() const;
  int64_t integer() const;
  double number() const;  // of integers too

  // Arrays and objects: number of children, the first one, and a child's successor (or nothing).
  uint32_t size() const;
  Value first() const;
  Value next() const;
  Value operator[](std::string_view key) const;  // nothing if absent, or if this is not an object

 private:
  const Document* document_ = nullptr;
  uint32_t node_ = 0;
};

class Document {
 public:
  static constexpr int kMaxDepth = 64;
  static constexpr uint32_t kCheckedKeys = 4096;

  // Throws an Error that names `file` and the byte where the text is wrong.
  Document(std::string file, std::string text, uint32_t most_values);
  Document(const Document&) = delete;
  Document& operator=(const Document&) = delete;

  Value root() const { return Value(this, 0); }
  const std::string& file() const { return file_; }

 private:
  friend class Value;
  friend class Parser;
  struct Node {
    union {
      int64_t integer;
      double number;
      struct {
        uint32_t offset, length;  // of a string
      } text;
      struct {
        uint32_t first, size;  // of children; first = 0: none
      } children;
    };
    uint32_t key, key_length;
    uint32_t next;  // 0: none
    Kind kind;
  };
  std::string_view text(uint32_t offset, uint32_t length) const { return std::string_view(text_).substr(offset, length); }

  std::string file_, text_;
  std::vector<Node> nodes_;
};

}  // namespace engine
}  // namespace potq
