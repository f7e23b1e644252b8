// Keys and values of many sequences, in pages of 64 positions.
//
// A page holds its positions' keys and values of all layers. It has users: sequences that begin alike share pages. A page that
// is full can be remembered by what it holds, its tokens and the page before it, and stays so when its last user lets go of it,
// until its memory is needed: a text that begins as another did finds pages that are computed. A page that is remembered is
// never written to again.
//
// Where a number lies in a page is this file's affair: keys in fewer bits change Page and what Forward writes and reads,
// nothing else. Tokens that are only guessed are written to pages that are not remembered yet, and can be taken back by
// shortening the sequence.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

#include "config.h"
#include "memory.h"

namespace potq {
namespace engine {

class Cache {
 public:
  static constexpr int kPage = 64;  // positions; a multiple of kKeyBlock
  static constexpr int32_t kNone = -1;

  // Throws an Error if there is no memory for so many pages.
  Cache(const Config& config, int64_t pages);

  static int64_t pages_for(int64_t positions) { return (positions + kPage - 1) / kPage; }
  static size_t page_bytes(const Config& config);  // throws an Error where they cannot be counted

  int64_t total() const { return total_; }
  int64_t used() const { return int64_t(pages_.size()) - int64_t(free_.size() + idle_.size()); }
  size_t bytes() const { return memory_.bytes(); }
  int64_t available() const { return total_ - used(); }

  // An empty page, with one user; kNone if there is none.
  int32_t take();
  void release(int32_t page);
  // The page with these kPage tokens behind `before` (kNone: at the beginning), with one user more; kNone if there is none.
  int32_t find(int32_t before, const int32_t* tokens);
  // Remembers a full page. If there is one that holds the same, it is released, and the other one gets its user. Returns the
  // page that stands for it from now on.
  int32_t remember(int32_t page, int32_t before, const int32_t* tokens);

  // float16. Keys are interleaved in blocks of kKeyBlock: number of the head, position.
  uint16_t* keys(int32_t page, int layer, int kv_head) const { return head(page, layer, kv_head); }
  uint16_t* values(int32_t page, int layer, int kv_head) const { return head(page, layer, kv_head) + kPage * head_size_; }

 private:
  struct Content {
    uint64_t before;  // identity of the page before, 0: none
    std::array<int32_t, kPage> tokens;
    bool operator==(const Content& other) const { return before == other.before && tokens == other.tokens; }
  };
  struct Hash {
    size_t operator()(const Content& content) const;
  };
  using Known = std::unordered_map<Content, int32_t, Hash>;
  struct Page {
    int users = 0;
    uint64_t identity = 0;  // of what it holds; 0: not remembered
    Known::iterator known;
    std::list<int32_t>::iterator idle;
  };

  uint64_t identity(int32_t page) const { return page == kNone ? 0 : pages_[size_t(page)].identity; }
  void hold(int32_t page);
  uint16_t* head(int32_t page, int layer, int kv_head) const {
    const size_t index = (size_t(page) * size_t(layers_) + size_t(layer)) * size_t(kv_heads_) + size_t(kv_head);
    return numbers_ + index * size_t(2 * kPage * head_size_);
  }

  const int layers_, kv_heads_, head_size_;
  const int64_t total_;
  Memory memory_;
  uint16_t* numbers_ = nullptr;
  std::vector<Page> pages_;  // that were taken once
  std::vector<int32_t> free_;
  std::list<int32_t> idle_;  // remembered, without users; the one that is forgotten next first
  Known known_;
  uint64_t identities_ = 0;
};

// The pages of one sequence, and how many of their positions are written.
class Sequence {
 public:
  explicit Sequence(Cache& cache) : cache_(&cache) {}
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;
  ~Sequence() { truncate(0); }

  int length() const { return length_; }
  const int32_t* pages() const { return pages_.data(); }

  // Makes room for `count` more; what it got it keeps if there is not enough: false.
  bool reserve(int count);
  // The next `count` positions were written. Full pages are remembered by `tokens`, all of the sequence's, if given.
  void advance(int count, const int32_t* tokens);
  // Takes pages of others that go on with `tokens` (all of the sequence's), up to `most` positions. Returns how many more.
  int share(const int32_t* tokens, int most);
  // Lets go of what lies behind. The page that the end lies in must not be remembered.
  void truncate(int length);

 private:
  Cache* cache_;
  std::vector<int32_t> pages_;
  int length_ = 0;
};

}  // namespace engine
}  // namespace potq
