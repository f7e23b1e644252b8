#include "cache.h"

#include <algorithm>

#include "error.h"
#include "lanes.h"

namespace potq {
namespace engine {

static_assert(Cache::kPage % kKeyBlock == 0);

size_t Cache::page_bytes(const Config& config) {
  Parts parts(nullptr);
  parts.take<uint16_t>(size_t(config.layers) * size_t(config.kv_size()) * size_t(2 * kPage));
  return parts.used();
}

Cache::Cache(const Config& config, int64_t pages)
    : layers_(config.layers), kv_heads_(config.kv_heads), head_size_(config.head_size), total_(pages) {
  if (pages > INT32_MAX) fail("a cache of %lld pages is too large; pass a smaller context", static_cast<long long>(pages));
  const auto lay_out = [&](uint8_t* memory) {
    Parts parts(memory);
    size_t bytes = page_bytes(config);
    if (__builtin_mul_overflow(bytes, size_t(pages), &bytes)) bytes = SIZE_MAX;
    numbers_ = reinterpret_cast<uint16_t*>(parts.take<uint8_t>(bytes));
    parts.take<uint16_t>(kKeyBlock);  // see Lanes::mix
    return parts.used();
  };
  memory_ = Memory(lay_out(nullptr), "the key-value cache (pass a smaller context, or fewer cache_bytes)", false);
  lay_out(memory_.data());
}

size_t Cache::Hash::operator()(const Content& content) const {
  uint64_t hash = content.before;
  for (const int32_t token : content.tokens) {  // splitmix64's mixing
    hash = (hash ^ uint32_t(token)) + 0x9e3779b97f4a7c15u;
    hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
    hash ^= hash >> 31;
  }
  return size_t(hash);
}

int32_t Cache::take() {
  int32_t page;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
  } else if (int64_t(pages_.size()) < total_) {
    page = int32_t(pages_.size());
    pages_.emplace_back();
  } else if (!idle_.empty()) {
    page = idle_.front();
    idle_.pop_front();
    known_.erase(pages_[size_t(page)].known);
    pages_[size_t(page)].identity = 0;
  } else {
    return kNone;
  }
  pages_[size_t(page)].users = 1;
  return page;
}

void Cache::hold(int32_t page) {
  Page& held = pages_[size_t(page)];
  if (held.users++ == 0) idle_.erase(held.idle);
}

void Cache::release(int32_t page) {
  Page& released = pages_[size_t(page)];
  if (--released.users) return;
  if (released.identity)
    released.idle = idle_.insert(idle_.end(), page);
  else
    free_.push_back(page);
}

int32_t Cache::find(int32_t before, const int32_t* tokens) {
  Content content = {identity(before), {}};
  std::copy(tokens, tokens + kPage, content.tokens.begin());
  const auto found = known_.find(content);
  if (found == known_.end()) return kNone;
  hold(found->second);
  return found->second;
}

int32_t Cache::remember(int32_t page, int32_t before, const int32_t* tokens) {
  const int32_t same = find(before, tokens);
  if (same != kNone) {
    release(page);
    return same;
  }
  Content content = {identity(before), {}};
  std::copy(tokens, tokens + kPage, content.tokens.begin());
  pages_[size_t(page)].known = known_.emplace(content, page).first;
  pages_[size_t(page)].identity = ++identities_;
  return page;
}

bool Sequence::reserve(int count) {
  while (int64_t(pages_.size()) * Cache::kPage < int64_t(length_) + count) {
    const int32_t page = cache_->take();
    if (page == Cache::kNone) return false;
    pages_.push_back(page);
  }
  return true;
}

void Sequence::advance(int count, const int32_t* tokens) {
  const int first = length_ / Cache::kPage;
  length_ += count;
  for (int i = first; tokens && (i + 1) * Cache::kPage <= length_; i++) {
    int32_t& page = pages_[size_t(i)];
    page = cache_->remember(page, i ? pages_[size_t(i) - 1] : Cache::kNone, tokens + size_t(i) * Cache::kPage);
  }
}

int Sequence::share(const int32_t* tokens, int most) {
  const int before = length_;
  while (length_ % Cache::kPage == 0 && length_ + Cache::kPage <= most) {
    const size_t index = size_t(length_ / Cache::kPage);
    const int32_t page = cache_->find(index ? pages_[index - 1] : Cache::kNone, tokens + length_);
    if (page == Cache::kNone) break;
    for (; pages_.size() > index; pages_.pop_back()) cache_->release(pages_.back());  // reserved, not written
    pages_.push_back(page);
    length_ += Cache::kPage;
  }
  return length_ - before;
}

// From the end: of pages that nobody uses, those whose beginning is kept are forgotten first.
void Sequence::truncate(int length) {
  length_ = length;
  const size_t kept = size_t(Cache::pages_for(length));
  for (; pages_.size() > kept; pages_.pop_back()) cache_->release(pages_.back());
}

}  // namespace engine
}  // namespace potq
