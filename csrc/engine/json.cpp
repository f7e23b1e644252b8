#include "json.h"

#include <algorithm>
#include <charconv>
#if !defined(__cpp_lib_to_chars)
#include <cmath>
#include <cstdlib>
#if defined(__APPLE__)
#include <xlocale.h>
#else
#include <locale.h>
#endif
#endif

#include "error.h"
#include "utf8.h"

namespace potq {
namespace engine {
namespace {

// Whether the number that is written in [from, to) is in range. Apple's from_chars knows no floating point before macOS 26.
bool read_double(const char* from, const char* to, double* value) {
#if defined(__cpp_lib_to_chars)
  return std::from_chars(from, to, *value).ec == std::errc();
#else
  static const locale_t c_locale = newlocale(LC_ALL_MASK, "C", nullptr);
  *value = strtod_l(std::string(from, to).c_str(), nullptr, c_locale);
  return std::isfinite(*value);
#endif
}

}  // namespace

Kind Value::kind() const { return document_->nodes_[node_].kind; }
std::string_view Value::key() const {
  const Document::Node& node = document_->nodes_[node_];
  return document_->text(node.key, node.key_length);
}
std::string_view Value::string() const {
  const Document::Node& node = document_->nodes_[node_];
  return document_->text(node.text.offset, node.text.length);
}
int64_t Value::integer() const { return document_->nodes_[node_].integer; }
double Value::number() const {
  const Document::Node& node = document_->nodes_[node_];
  return node.kind == Kind::kInteger ? double(node.integer) : node.number;
}
uint32_t Value::size() const { return document_->nodes_[node_].children.size; }
Value Value::first() const {
  const uint32_t first = document_->nodes_[node_].children.first;
  return first ? Value(document_, first) : Value();
}
Value Value::next() const {
  const uint32_t next = document_->nodes_[node_].next;
  return next ? Value(document_, next) : Value();
}
Value Value::operator[](std::string_view key) const {
  if (!is(Kind::kObject)) return Value();
  for (Value child = first(); child; child = child.next()) {
    if (child.key() == key) return child;
  }
  return Value();
}

class Parser {
 public:
  Parser(Document& document, uint32_t most_values) : document_(document), text_(document.text_), most_(most_values) {}

  void run() {
    if (text_.size() >= UINT32_MAX) wrong("is too long");
    space();
    value(0);
    space();
    if (at_ != text_.size()) wrong("goes on after its end");
  }

 private:
  using Node = Document::Node;

  [[noreturn]] void wrong(const char* what) const {
    fail("%s %s (byte %zu); copy it again", document_.file_.c_str(), what, at_);
  }
  Node& node(uint32_t index) { return document_.nodes_[index]; }
  int peek() const { return at_ < text_.size() ? static_cast<unsigned char>(text_[at_]) : -1; }
  void space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) at_++;
  }
  void expect(char c) {
    if (peek() != c) wrong("is not valid JSON");
    at_++;
  }
  void word(const char* rest) {
    for (; *rest; rest++) expect(*rest);
  }

  uint32_t value(int depth) {
    if (depth > Document::kMaxDepth) wrong("is nested too deeply");
    if (document_.nodes_.size() >= most_) wrong("has too many values");
    const uint32_t index = uint32_t(document_.nodes_.size());
    document_.nodes_.push_back(Node{});
    switch (peek()) {
      case '{': container(index, depth, Kind::kObject, '}'); break;
      case '[': container(index, depth, Kind::kArray, ']'); break;
      case '"': {
        node(index).kind = Kind::kString;
        string(&node(index).text.offset, &node(index).text.length);
        break;
      }
      case 't': word("true"), node(index).kind = Kind::kTrue; break;
      case 'f': word("false"), node(index).kind = Kind::kFalse; break;
      case 'n': word("null"), node(index).kind = Kind::kNull; break;
      default: number(index);
    }
    return index;
  }

  void container(uint32_t index, int depth, Kind kind, char end) {
    uint32_t size = 0, first = 0, last = 0;
    at_++;
    space();
    while (peek() != end) {
      if (size) expect(','), space();
      uint32_t key = 0, length = 0;
      if (kind == Kind::kObject) string(&key, &length), space(), expect(':'), space();
      const uint32_t child = value(depth + 1);
      node(child).key = key, node(child).key_length = length;
      (last ? node(last).next : first) = child;
      last = child;
      size++;
      space();
      if (peek() != ',' && peek() != end) wrong("is not valid JSON");
    }
    at_++;
    node(index).kind = kind;
    node(index).children.first = first, node(index).children.size = size;
    if (kind == Kind::kObject && size <= Document::kCheckedKeys) check_keys(index);
  }

  void check_keys(uint32_t index) {
    keys_.clear();
    for (Value child = Value(&document_, index).first(); child; child = child.next()) keys_.push_back(child.key());
    std::sort(keys_.begin(), keys_.end());
    const auto twice = std::adjacent_find(keys_.begin(), keys_.end());
    if (twice != keys_.end()) fail("%s has the key %s twice; copy it again", document_.file_.c_str(), quoted(*twice).c_str());
  }

  int hex4() {
    int result = 0;
    for (int i = 0; i < 4; i++) {
      const int c = peek();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) wrong("has a bad \\u escape");
      result = result * 16 + digit;
      at_++;
    }
    return result;
  }

  // Behind a backslash; writes to `to`, which is behind what was read.
  size_t escape(size_t to) {
    const int c = peek();
    at_++;
    switch (c) {
      case '"':
      case '\\':
      case '/': text_[to] = char(c); return to + 1;
      case 'b': text_[to] = '\b'; return to + 1;
      case 'f': text_[to] = '\f'; return to + 1;
      case 'n': text_[to] = '\n'; return to + 1;
      case 'r': text_[to] = '\r'; return to + 1;
      case 't': text_[to] = '\t'; return to + 1;
      case 'u': break;
      default: wrong("has a bad escape");
    }
    uint32_t code = uint32_t(hex4());
    if (code >= 0xd800 && code < 0xe000) {
      if (code >= 0xdc00) wrong("has half a surrogate pair");
      expect('\\'), expect('u');
      const uint32_t low = uint32_t(hex4());
      if (low < 0xdc00 || low >= 0xe000) wrong("has half a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    return to + encode_utf8(code, &text_[to]);  // never longer than the escape
  }

  void string(uint32_t* offset, uint32_t* length) {
    expect('"');
    size_t to = at_;
    *offset = uint32_t(at_);
    for (;;) {
      const int c = peek();
      if (c < 0) wrong("ends within a string");
      if (c < 0x20) wrong("has a control character in a string");
      if (c == '"') break;
      if (c == '\\') {
        at_++;
        to = escape(to);
      } else if (c < 0x80) {
        text_[to++] = char(c), at_++;
      } else {
        uint32_t code;
        const int bytes = decode_utf8(text_.data() + at_, text_.size() - at_, &code);
        if (!bytes) wrong("is not valid UTF-8");
        for (int i = 0; i < bytes; i++) text_[to++] = text_[at_++];
      }
    }
    *length = uint32_t(to) - *offset;
    at_++;
  }

  bool digits() {
    const size_t start = at_;
    while (peek() >= '0' && peek() <= '9') at_++;
    return at_ > start;
  }

  void number(uint32_t index) {
    const size_t start = at_;
    bool integer = true;
    if (peek() == '-') at_++;
    if (peek() == '0') {
      at_++;
    } else if (!digits()) {
      wrong("is not valid JSON");
    }
    if (peek() == '.') {
      integer = false, at_++;
      if (!digits()) wrong("has a bad number");
    }
    if (peek() == 'e' || peek() == 'E') {
      integer = false, at_++;
      if (peek() == '+' || peek() == '-') at_++;
      if (!digits()) wrong("has a bad number");
    }
    const char *from = text_.data() + start, *to = text_.data() + at_;
    node(index).kind = Kind::kInteger;
    if (integer && std::from_chars(from, to, node(index).integer).ec == std::errc()) return;
    node(index).kind = Kind::kNumber;
    if (!read_double(from, to, &node(index).number)) wrong("has a number that is out of range");
  }

  Document& document_;
  std::string& text_;
  const uint32_t most_;
  size_t at_ = 0;
  std::vector<std::string_view> keys_;
};

Document::Document(std::string file, std::string text, uint32_t most_values) : file_(std::move(file)), text_(std::move(text)) {
  // a value costs at least a comma, a colon or a bracket (the first apart): so many, at most
  size_t marks = 1;
  for (const char c : text_) marks += c == ',' || c == '[' || c == '{';
  nodes_.reserve(std::min<size_t>(marks + 1, most_values));
  Parser(*this, most_values).run();
}

}  // namespace engine
}  // namespace potq
