// The forward pass over a model, of tokens of several sequences at a time. See forward.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "cache.h"
#include "lanes.h"
#include "model.h"
#include "pool.h"

namespace potq {
namespace engine {

// Tokens that come next in a sequence, which has room for them.
struct Span {
  const int32_t* ids;  // in range
  int count, wanted;   // tokens, and of how many of them, the last ones, logits are wanted
  const Sequence* sequence;
};

class Forward {
 public:
  static constexpr int kChunk = 128;             // tokens of prompts that go through the layers together
  static constexpr int kSlots = 64;              // sequences beside them, each with its next token
  static constexpr int kRows = kChunk + kSlots;  // of activations

  // `context`: tokens of the longest sequence.
  Forward(const Model& model, Pool& pool, int context, int32_t isa, int32_t arithmetic);

  int context() const { return context_; }

  // Computes the tokens of all spans, at most kRows together, each behind its sequence, whose length stays what it is. logits:
  // vocabulary numbers for every token that they are wanted of, in order.
  void run(const std::vector<Span>& spans, const Cache& cache, float* logits);

 private:
  struct Choice {  // of a token
    int expert;
    float weight;
  };
  struct Group {  // rows that take the same expert, and their places from the first on
    int expert, first, rows;
  };
  struct Own {  // of a thread
    float *x, *h, *scores, *odds;
    uint8_t* panels;
    Choice* choices;
  };
  struct Output {
    const Matrix* matrix;
    float* y;
  };
  struct Rows {
    int first, last;
  };
  struct Row {
    int32_t id;
    int position;
    const int32_t* pages;  // of its sequence
  };

  void lay_out(uint8_t* memory, size_t* bytes);
  void lay_out_experts(Parts* parts);
  void work(int thread);
  void layer(int thread, int index, float* x, float* h, float*& pending);
  void mlp(int thread, const Layer& layer, const float* h, const Matrix& next);
  void attend(int thread, int layer);
  Rows seen(int layer, int row) const;
  void attend_heads(int thread, int layer, int row, int rows, int head, int count);
  void mix(int layer, int row, int rows, int head, int count, const float* weights, size_t stride, int start);
  template <class Part>
  void in_pages(int row, int from, int until, const Part& part) const;
  void finish(int thread, float* x, float* h, float* pending);
  void norm_row(int row, const float* pending, const float* x, float* h, float* free) const;
  void embed(int row, float* x, float* free) const;
  void add(const Norm& post, const float* out, float* x, float* free) const;
  void norm(const Norm& norm, const float* x, float* y) const;
  void norm_heads(int layer, int row);
  void rotate(int layer, int row, float* head) const;
  void place_key_value(int layer, int row, int kv_head);
  void rotate_query(int layer, int row, int head);
  void choose(const float* scores, float* odds, Choice* to) const;
  void choose_rows(int thread, const Matrix& router, const float* h);
  void group();
  void gather(const Group& group, const float* h);
  Inputs inputs_of(const Group& group, const float* x, int columns) const;
  uint8_t* panels_of(const Group& group) const { return place_panels_ + size_t(group.first) * place_bytes_; }
  void prepare_group(const Matrix& matrix, const Group& group, const float* x);
  template <class Part>
  void in_groups(int blocks, const Part& part);
  void activate_blocks(float* gate, const float* up, int first, int last) const;
  void experts_of_many(int thread, const Experts& experts, const float* h);
  void experts_of_one(int thread, const Experts& experts, const float* h, const Matrix& next);
  void sum_up(const Choice* choices, const int* places, float* to, int first, int last) const;
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
  float* turns(int rotation, int row) const {  // cosines, then sines
    return rotation_ + (size_t(rotation) * kRows + size_t(row)) * size_t(c_.head_size);
  }

  const Model& model_;
  const Config& c_;
  Pool& pool_;
  const Lanes& lanes_;
  const int context_;
  const int32_t isa_, arithmetic_;
  const int tile_rows_;  // rows of a sequence that attend together

  // the run's
  const Cache* cache_ = nullptr;
  std::vector<Row> rows_;
  std::vector<Rows> tiles_;  // rows that attend together
  std::vector<int> wanted_;  // rows with logits
  float* logits_ = nullptr;
  int m_ = 0;

  Memory memory_;
  std::vector<Own> own_;
  float *x_ = nullptr, *h_ = nullptr, *q_ = nullptr, *k_ = nullptr, *v_ = nullptr, *attention_ = nullptr, *out_ = nullptr,
        *gate_ = nullptr, *up_ = nullptr, *rotation_ = nullptr;
  size_t q_stride_ = 0, kv_stride_ = 0;
  uint8_t* panels_ = nullptr;

  // experts': places are those of rows times experts that each chooses
  std::vector<Group> groups_;
  float *router_ = nullptr, *taken_ = nullptr;                     // taken: inputs of all places, then their outputs
  Choice* choices_ = nullptr;                                      // of all rows
  int *places_ = nullptr, *owners_ = nullptr, *counts_ = nullptr;  // of all choices; rows of all places; by expert
  uint8_t* place_panels_ = nullptr;
  size_t place_bytes_ = 0;
};

}  // namespace engine
}  // namespace potq
