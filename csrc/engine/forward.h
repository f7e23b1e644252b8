// The forward pass over a model, with its key-value cache. See forward.cpp.
#pragma once

#include <cstdint>

#include "lanes.h"
#include "model.h"
#include "pool.h"

namespace potq {
namespace engine {

class Forward {
 public:
  static constexpr int kChunk = 128;  // tokens that go through the layers together

  Forward(const Model& model, Pool& pool, int context, int32_t isa, int32_t arithmetic);

  int context() const { return context_; }
  int length() const { return length_; }  // tokens in the cache
  void forget(int length) { length_ = length; }

  // Appends up to kChunk tokens, whose ids are in range and for which there is room. logits: of the last token (vocabulary
  // numbers), or of all (count x vocabulary), or null.
  void run(const int32_t* ids, int count, float* logits, bool all);

 private:
  struct Own {  // of a thread
    float *x, *h, *scores;
    uint8_t* panels;
  };
  struct Output {
    const Matrix* matrix;
    float* y;
  };
  struct Rows {
    int first, last;
  };

  void lay_out(uint8_t* memory, size_t* bytes);
  void work(int thread);
  void layer(int thread, int index, float* x, float* h, float*& pending);
  void attend(int thread, int layer);
  Rows seen(int layer, int row) const;
  void attend_heads(int thread, int layer, int row, int rows, int head, int count);
  void mix(int layer, int row, int rows, int head, int count, const float* weights, size_t stride, int start);
  void finish(int thread, float* x, float* h, float* pending);
  void embed(int row, float* x, float* free) const;
  void norm(const Norm& norm, const float* x, float* y) const;
  void rotate(int row, float* head) const;
  void place_key_value(int layer, int row, int kv_head);
  void rotate_query(int layer, int row, int head);
  void activate(float* gate, const float* up, int count) const;
  void products(int thread, const float* x, int m, const Output* outputs, int count, const Matrix& next);
  void share(int thread, const Inputs& inputs, const Output* outputs, int count);
  void spread(const Inputs& inputs, const Output* outputs, int count);
  Rows share_of(int thread, int count) const;
  Rows rows_of(int thread) const;
  Ahead ahead(int thread, const Matrix& matrix) const;

  float* query(int row, int head) const { return q_ + size_t(row) * q_stride_ + size_t(head) * size_t(c_.head_size); }
  float* key(int row, int head) const { return k_ + size_t(row) * kv_stride_ + size_t(head) * size_t(c_.head_size); }
  float* value(int row, int head) const { return v_ + size_t(row) * kv_stride_ + size_t(head) * size_t(c_.head_size); }
  uint16_t* cached(uint16_t* cache, int layer, int kv_head, int position) const {
    const size_t head = size_t(layer) * size_t(c_.kv_heads) + size_t(kv_head);
    return cache + (head * size_t(room_) + size_t(position)) * size_t(c_.head_size);
  }

  const Model& model_;
  const Config& c_;
  Pool& pool_;
  const Lanes& lanes_;
  const int context_;
  const int64_t room_;  // context, in whole blocks of keys
  const int32_t isa_, arithmetic_;
  const int tile_rows_;  // rows of a prompt that attend together
  int length_ = 0;

  // the run's
  const int32_t* ids_ = nullptr;
  float* logits_ = nullptr;
  int m_ = 0;
  bool all_ = false;

  Memory memory_;
  std::vector<Own> own_;
  float *x_ = nullptr, *h_ = nullptr, *q_ = nullptr, *k_ = nullptr, *v_ = nullptr, *attention_ = nullptr, *out_ = nullptr,
        *gate_ = nullptr, *up_ = nullptr, *rotation_ = nullptr;
  size_t q_stride_ = 0, kv_stride_ = 0;
  uint8_t* panels_ = nullptr;
  uint16_t *keys_ = nullptr, *values_ = nullptr;  // float16: layer, key-value head, position, head_size; keys are
                                                  // interleaved in blocks of 16: number of the head, position
};

}  // namespace engine
}  // namespace potq
