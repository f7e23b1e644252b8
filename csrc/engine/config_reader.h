// Typed look-ups in a config's JSON, with the key in every message.
#pragma once

#include <string>

#include "error.h"
#include "json.h"

namespace potq {
namespace engine {

class Reader {
 public:
  Reader(const Value& object, const std::string& file) : object_(object), file_(file) {}

  int64_t integer(const char* key, int64_t least, int64_t most) const {
    const Value value = object_[key];
    if (value.null()) fail("%s has no %s; it is incomplete, copy it again", file_.c_str(), key);
    return checked(value, key, least, most);
  }
  int64_t integer(const char* key, int64_t least, int64_t most, int64_t otherwise) const {
    const Value value = object_[key];
    return value.null() ? otherwise : checked(value, key, least, most);
  }
  double number(const char* key, double least, double most, double otherwise) const {
    const Value value = object_[key];
    if (value.null()) return otherwise;
    if (!(value.is(Kind::kInteger) || value.is(Kind::kNumber)) || !(value.number() >= least && value.number() <= most))
      fail("%s: %s is not a number in %g..%g", file_.c_str(), key, least, most);
    return value.number();
  }
  bool flag(const char* key, bool otherwise) const {
    const Value value = object_[key];
    if (value.null()) return otherwise;
    if (!value.is(Kind::kTrue) && !value.is(Kind::kFalse)) fail("%s: %s is neither true nor false", file_.c_str(), key);
    return value.is(Kind::kTrue);
  }
  std::string text(const char* key, const char* otherwise) const {
    const Value value = object_[key];
    if (value.null()) return otherwise;
    if (!value.is(Kind::kString)) fail("%s: %s is not a string", file_.c_str(), key);
    return std::string(value.string());
  }
  Value value(const char* key) const { return object_[key]; }
  const std::string& file() const { return file_; }

 private:
  int64_t checked(const Value& value, const char* key, int64_t least, int64_t most) const {
    if (!value.is(Kind::kInteger) || value.integer() < least || value.integer() > most)
      fail("%s: %s is not an integer in %lld..%lld", file_.c_str(), key, static_cast<long long>(least),
           static_cast<long long>(most));
    return value.integer();
  }
  const Value object_;
  const std::string& file_;
};

inline Reader reader_of(const Document& document) {
  if (!document.root().is(Kind::kObject)) fail("%s holds no JSON object; copy it again", document.file().c_str());
  return Reader(document.root(), document.file());
}

}  // namespace engine
}  // namespace potq
