// Attention of the forward pass: rotation, the cache, and looking back over a sequence's pages.
#include <algorithm>
#include <cmath>

#include "forward.h"

namespace potq {
namespace engine {

// Number i of a head goes with number i + half, of the numbers that turn.
void Forward::rotate(int layer, int row, float* head) const {
  const int rotation = c_.rotation[size_t(layer)];
  if (rotation < 0) return;
  const int half = int(c_.frequencies[size_t(rotation)].size());
  float *low = head, *high = head + half;
  const float *cosine = turns(rotation, row), *sine = cosine + half;
  for (int i = 0; i < half; i++) {
    const float a = low[i], b = high[i];
    low[i] = a * cosine[i] - b * sine[i];
    high[i] = b * cosine[i] + a * sine[i];
  }
}

// Norms of all query heads together, and of all keys.
void Forward::norm_heads(int layer, int row) {
  const Layer& weights = model_.layers[size_t(layer)];
  lanes_.rms_norm(query(row, 0), weights.q_norm.data(), c_.epsilon, query(row, 0), c_.query_size());
  lanes_.rms_norm(key(row, 0), weights.k_norm.data(), c_.epsilon, key(row, 0), c_.kv_size());
}

void Forward::place_key_value(int layer, int row, int kv_head) {
  float* k = key(row, kv_head);
  const std::vector<float>& weight = model_.layers[size_t(layer)].k_norm;
  if (!weight.empty() && !c_.whole_norms) lanes_.rms_norm(k, weight.data(), c_.epsilon, k, c_.head_size);
  rotate(layer, row, k);
  const int position = rows_[size_t(row)].position, at = position % Cache::kPage;
  const int32_t page = rows_[size_t(row)].pages[position / Cache::kPage];
  uint16_t* keys = cache_->keys(page, layer, kv_head) + at / kKeyBlock * kKeyBlock * c_.head_size + at % kKeyBlock;
  uint16_t halves[kMaxHead];
  lanes_.to_half(k, halves, c_.head_size);
  for (int i = 0; i < c_.head_size; i++) keys[i * kKeyBlock] = halves[i];
  lanes_.to_half(value(row, kv_head), cache_->values(page, layer, kv_head) + at * c_.head_size, c_.head_size);
}

void Forward::rotate_query(int layer, int row, int head) {
  const std::vector<float>& weight = model_.layers[size_t(layer)].q_norm;
  float* q = query(row, head);
  if (!weight.empty() && !c_.whole_norms) lanes_.rms_norm(q, weight.data(), c_.epsilon, q, c_.head_size);
  rotate(layer, row, q);
}

void Forward::attend(int thread, int layer) {
  const Layer& weights = model_.layers[size_t(layer)];
  const int group = c_.heads / c_.kv_heads;
  if (m_ == 1) {  // threads divide the heads, first to place them, then to look back
    if (c_.whole_norms) {
      if (thread == 0) norm_heads(layer, 0);
      pool_.barrier();
    }
    const Rows all = share_of(thread, c_.kv_heads + c_.heads), mine = share_of(thread, c_.heads);
    for (int head = all.first; head < all.last; head++) {
      if (head < c_.kv_heads)
        place_key_value(layer, 0, head);
      else
        rotate_query(layer, 0, head - c_.kv_heads);
    }
    pool_.barrier(ahead(thread, weights.o));
    for (int head = mine.first, next; head < mine.last; head = next) {
      next = std::min(mine.last, (head / group + 1) * group);  // those that share a key-value head
      attend_heads(thread, layer, 0, 1, head, next - head);
    }
    return pool_.barrier(ahead(thread, weights.o));
  }
  const Rows rows = rows_of(thread);
  for (int row = rows.first; row < rows.last; row++) {
    if (c_.whole_norms) norm_heads(layer, row);
    for (int head = 0; head < c_.kv_heads; head++) place_key_value(layer, row, head);
    for (int head = 0; head < c_.heads; head++) rotate_query(layer, row, head);
  }
  pool_.barrier();
  const int tiles = int(tiles_.size()), tasks = tiles * c_.kv_heads;
  for (int task = pool_.take(1); task < tasks; task = pool_.take(1)) {
    const Rows tile = tiles_[size_t(task % tiles)];
    attend_heads(thread, layer, tile.first, tile.last - tile.first, task / tiles * group, group);
  }
  pool_.barrier();
}

// Calls part(page, position in it, position, count) for positions [from, until) of the row's sequence, page by page.
template <class Part>
void Forward::in_pages(int row, int from, int until, const Part& part) const {
  const int32_t* pages = rows_[size_t(row)].pages;
  for (int next; from < until; from = next) {
    next = std::min(until, (from / Cache::kPage + 1) * Cache::kPage);
    part(pages[from / Cache::kPage], from % Cache::kPage, from, next - from);
  }
}

// The positions that a row sees: its own and those before it, within the window.
Forward::Rows Forward::seen(int layer, int row) const {
  const int window = c_.window[size_t(layer)], end = rows_[size_t(row)].position + 1;
  return {window ? std::max(0, end - window) : 0, end};
}

// `count` query heads that share a key-value head, of `rows` rows, look at every position before them.
void Forward::attend_heads(int thread, int layer, int row, int rows, int head, int count) {
  const int size = c_.head_size, kv_head = head / (c_.heads / c_.kv_heads);
  const int first = seen(layer, row).first, start = first - first % kKeyBlock, end = seen(layer, row + rows - 1).last;
  const int blocks = (end - start + kKeyBlock - 1) / kKeyBlock;
  const size_t stride = size_t(blocks | 1) * kKeyBlock;  // odd: rows at powers of two would share few places of a cache
  const float scale = c_.attention_scale;
  float* scores = own_[size_t(thread)].scores;
  const HeadRows<const float> q = {query(row, head), q_stride_, rows, count};
  in_pages(row, start, end, [&](int32_t page, int at, int position, int positions) {
    lanes_.score(q, cache_->keys(page, layer, kv_head) + at * size, size, (positions + kKeyBlock - 1) / kKeyBlock, scale,
                 scores + (position - start), stride);
  });
  for (int h = 0; h < rows * count; h++) {
    const Rows own = seen(layer, row + h / count);
    lanes_.softmax(scores + size_t(h) * stride + (own.first - start), own.last - own.first);
  }
  mix(layer, row, rows, head, count, scores, stride, start);
}

// Sums over what each row sees, in order (weights begin at position `start`): what stands before the part that all rows see,
// that part together, what stands behind.
void Forward::mix(int layer, int row, int rows, int head, int count, const float* weights, size_t stride, int start) {
  const int size = c_.head_size, kv_head = head / (c_.heads / c_.kv_heads);
  const size_t to = size_t(c_.query_size());
  float* out = attention_ + size_t(row) * to + size_t(head) * size_t(size);
  const auto add = [&](int from, int until, int first, int taken) {
    const HeadRows<float> heads = {out + size_t(first) * to, to, taken, count};
    in_pages(row, from, until, [&](int32_t page, int at, int position, int positions) {
      lanes_.mix(weights + size_t(first * count) * stride + (position - start), stride,
                 cache_->values(page, layer, kv_head) + at * size, size, positions, heads);
    });
  };
  const int from = seen(layer, row + rows - 1).first, until = std::max(from, seen(layer, row).last);
  for (int i = 0; i < rows; i++) {
    const Rows own = seen(layer, row + i);
    std::fill_n(out + size_t(i) * to, count * size, 0.0f);
    add(own.first, std::min(from, own.last), i, 1);
  }
  add(from, seen(layer, row).last, 0, rows);
  for (int i = 0; i < rows; i++) add(until, seen(layer, row + i).last, i, 1);
}

}  // namespace engine
}  // namespace potq
