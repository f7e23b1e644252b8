// The forward pass: all threads run all of it and meet at barriers.
//
// One token: every thread keeps the residual stream x to itself and computes norms and the rounding of activations again,
// which costs less than a barrier; products are divided by rows of the weights. Six barriers a layer:
//
//   h = norm(x)   q, k, v | rotation, cache, by heads | attention, by heads | Wo | x += ; norm; gate, up, act | Wdown |  x +=
//
// A thread that waits fetches the weights it will read next. On a free machine waiting is a tenth of a token's time, and most
// of that is threads whose equal work takes unequal time. Rejected therefore: one barrier less, where threads compute whole
// heads and rotate them at once (1 to 2 % for 70 lines); and rows of weights taken as threads come free, which costs 5 to 15 %,
// also where other programs have the cores.
//
// Many tokens, of one sequence or of several: rows of activations are divided for everything but the products, in which threads
// take panels to prepare and then blocks of weights as they come. A few rows of a sequence, with the heads of a group, attend
// together.
//
// Every number is computed by one thread in one order, whatever the number of threads and of tokens at a time, and whose they
// are: logits are the same bits.
#include "forward.h"

#include <algorithm>
#include <cmath>

namespace potq {
namespace engine {
namespace {
constexpr int kTaskBlocks = 4;  // row blocks a thread takes at a time
}  // namespace

Forward::Forward(const Model& model, Pool& pool, int context, int32_t isa, int32_t arithmetic)
    : model_(model),
      c_(model.config),
      pool_(pool),
      lanes_(lanes(isa)),
      context_(context),
      isa_(isa),
      arithmetic_(arithmetic),
      tile_rows_(std::max(1, lanes_.tile / (c_.heads / c_.kv_heads))),
      own_(size_t(pool.threads())) {
  size_t bytes = 0;
  lay_out(nullptr, &bytes);
  memory_ = Memory(bytes, "the activations (pass a smaller context)", false);
  lay_out(memory_.data(), &bytes);
}

void Forward::lay_out(uint8_t* memory, size_t* bytes) {
  Parts parts(memory);
  const size_t rows = kRows, hidden = size_t(c_.hidden);
  const size_t inner = std::max(size_t(c_.intermediate), size_t(c_.mixture.chosen) * size_t(c_.mixture.intermediate));
  const size_t q = size_t(c_.query_size()), kv = size_t(c_.kv_size());
  size_t one = 0, many = 0;  // bytes of panels
  const auto measure = [&](const Matrix& matrix) {
    if (matrix.type != Matrix::kPacked) return;
    one = std::max(one, potq_panels_bytes(&matrix.format, isa_, arithmetic_, 1));
    many = std::max(many, potq_panels_bytes(&matrix.format, isa_, arithmetic_, int32_t(rows)));
    for (size_t m = 1; m < rows; m++)  // fewer rows may be cut into panels that are padded more
      many = std::max(many, potq_panels_bytes(&matrix.format, isa_, arithmetic_, int32_t(m)));
  };
  for (const Layer& layer : model_.layers) {
    for (const Matrix& matrix : layer.qkv) measure(matrix);
    for (const Matrix& matrix : layer.gate) measure(matrix);
    for (const std::vector<Matrix>* matrices : {&layer.experts.gate, &layer.experts.down}) {
      if (!matrices->empty()) measure(matrices->front());
    }
    measure(layer.o), measure(layer.up), measure(layer.down);
  }
  measure(model_.head());
  for (Own& own : own_) {
    own.x = parts.take<float>(hidden);
    own.h = parts.take<float>(hidden);
    own.scores = parts.take<float>(size_t(tile_rows_) * size_t(c_.heads / c_.kv_heads) * (size_t(context_) + 3 * kKeyBlock));
    own.panels = parts.take<uint8_t>(one);
  }
  x_ = parts.take<float>(rows * hidden);
  h_ = parts.take<float>(rows * hidden);
  q_ = parts.take<float>(rows * (q + 2 * kv));
  const bool fused = model_.layers[0].qkv.size() == 1;
  const auto behind = [](float* part, size_t count) { return part ? part + count : nullptr; };  // null: only counting
  k_ = behind(q_, fused ? q : rows * q);
  v_ = behind(k_, fused ? kv : rows * kv);
  q_stride_ = fused ? q + 2 * kv : q;
  kv_stride_ = fused ? q + 2 * kv : kv;
  attention_ = parts.take<float>(rows * q);
  out_ = parts.take<float>(rows * hidden);
  gate_ = parts.take<float>(rows * inner);
  up_ = parts.take<float>(rows * inner);
  rotation_ = parts.take<float>(c_.frequencies.size() * rows * size_t(c_.head_size));
  panels_ = parts.take<uint8_t>(many);
  lay_out_experts(&parts);
  *bytes = parts.used();
}

void Forward::run(const std::vector<Span>& spans, const Cache& cache, float* logits) {
  cache_ = &cache, logits_ = logits;
  rows_.clear(), tiles_.clear(), wanted_.clear();
  for (const Span& span : spans) {
    const int first = int(rows_.size());
    for (int i = 0; i < span.count; i++) {
      if (i >= span.count - span.wanted) wanted_.push_back(first + i);
      rows_.push_back({span.ids[i], span.sequence->length() + i, span.sequence->pages()});
    }
    for (int i = 0; i < span.count; i += tile_rows_)
      tiles_.push_back({first + i, first + std::min(i + tile_rows_, span.count)});
  }
  m_ = int(rows_.size());
  for (size_t i = 0; i < c_.frequencies.size(); i++) {
    for (int row = 0; row < m_; row++) {
      float *cosine = turns(int(i), row), *sine = cosine + c_.frequencies[i].size();
      for (const float frequency : c_.frequencies[i]) {
        const float angle = float(rows_[size_t(row)].position) * frequency;
        *cosine++ = std::cos(angle);
        *sine++ = std::sin(angle);
      }
    }
  }
  pool_.run([](void* self, int thread) { static_cast<Forward*>(self)->work(thread); }, this);
}

Forward::Rows Forward::share_of(int thread, int count) const {
  const int64_t threads = pool_.threads();
  return {int(count * int64_t(thread) / threads), int(count * int64_t(thread + 1) / threads)};
}

Forward::Rows Forward::rows_of(int thread) const { return m_ == 1 ? Rows{0, 1} : share_of(thread, m_); }

// What a thread will read of a matrix that one token is multiplied with.
Ahead Forward::ahead(int thread, const Matrix& matrix) const {
  const Rows blocks = share_of(thread, matrix.blocks());
  return matrix.part(blocks.first, blocks.last);
}

void Forward::work(int thread) {
  const Own& own = own_[size_t(thread)];
  float *x = m_ == 1 ? own.x : x_, *h = m_ == 1 ? own.h : h_;
  const Rows rows = rows_of(thread);
  for (int row = rows.first; row < rows.last; row++) embed(row, x + size_t(row) * size_t(c_.hidden), own.h);
  float* pending = nullptr;  // what is still to be added to x
  for (int index = 0; index < c_.layers; index++) layer(thread, index, x, h, pending);
  if (!wanted_.empty()) finish(thread, x, h, pending);
}

// `free`: room for a row.
void Forward::embed(int row, float* x, float* free) const {
  read_row(model_.embedding, rows_[size_t(row)].id, x);
  for (int i = 0; i < c_.hidden && c_.embedding_scale != 1; i++) x[i] *= c_.embedding_scale;
  if (model_.positions.empty()) return;
  read_row(model_.positions[0], rows_[size_t(row)].position, free);
  lanes_.add(free, x, c_.hidden);
}

// x += what a part of the layer put out. `free`: room for a row.
void Forward::add(const Norm& post, const float* out, float* x, float* free) const {
  if (post.weight.empty()) return lanes_.add(out, x, c_.hidden);
  norm(post, out, free);
  lanes_.add(free, x, c_.hidden);
}

void Forward::norm(const Norm& norm, const float* x, float* y) const {
  if (norm.weight.empty())
    std::copy(x, x + c_.hidden, y);
  else if (c_.rms)
    lanes_.rms_norm(x, norm.weight.data(), c_.epsilon, y, c_.hidden);
  else
    lanes_.layer_norm(x, norm.weight.data(), norm.bias.data(), c_.epsilon, y, c_.hidden);
}

void Forward::layer(int thread, int index, float* x, float* h, float*& pending) {
  const Layer& layer = model_.layers[size_t(index)];
  const Rows rows = rows_of(thread);
  const size_t hidden = size_t(c_.hidden);
  const auto add_and_norm = [&](const Norm& post, const Norm& weights) {
    for (int row = rows.first; row < rows.last; row++) {
      const size_t at = size_t(row) * hidden;
      if (pending) add(post, pending + at, x + at, h + at);
      norm(weights, x + at, h + at);
    }
    if (m_ > 1) pool_.barrier();
  };

  add_and_norm(index ? model_.layers[size_t(index) - 1].mlp_post_norm : layer.mlp_post_norm, layer.attention_norm);
  const bool fused = layer.qkv.size() == 1;
  const Output qkv[3] = {{&layer.qkv[0], q_}, {&layer.qkv[fused ? 0 : 1], k_}, {&layer.qkv[fused ? 0 : 2], v_}};
  products(thread, h, m_, qkv, fused ? 1 : 3, layer.o);
  attend(thread, index);
  const Output o = {&layer.o, out_};
  products(thread, attention_, m_, &o, 1, layer.up);
  pending = out_;

  add_and_norm(layer.attention_post_norm, layer.mlp_norm);
  const Matrix& next = index + 1 == c_.layers ? model_.head() : model_.layers[size_t(index) + 1].qkv[0];
  if (!c_.sparse[size_t(index)])
    mlp(thread, layer, h, next);
  else if (m_ == 1)
    experts_of_one(thread, layer.experts, h, next);
  else
    experts_of_many(thread, layer.experts, h);
}

// `next`: the first matrix that comes after it.
void Forward::mlp(int thread, const Layer& layer, const float* h, const Matrix& next) {
  const size_t inner = size_t(c_.intermediate);
  const Rows rows = rows_of(thread);
  const bool gated = !layer.gate.empty();
  const Output gate_up[2] = {{&layer.up, up_}, {gated ? &layer.gate[0] : nullptr, gate_}};
  float* active = gated ? gate_ : up_;
  if (m_ == 1) {  // a thread activates the outputs it computed, before the barrier
    share(thread, Inputs{h, 1, isa_, arithmetic_}, gate_up, gated ? 2 : 1);
    const Rows blocks = share_of(thread, layer.up.blocks());
    const int first = blocks.first * 16, last = std::min(blocks.last * 16, c_.intermediate);
    activate(active + first, gated ? up_ + first : nullptr, last - first);
    pool_.barrier(ahead(thread, layer.down));
  } else {
    spread(Inputs{h, m_, isa_, arithmetic_}, gate_up, gated ? 2 : 1);
    for (int row = rows.first; row < rows.last; row++)
      activate(active + size_t(row) * inner, gated ? up_ + size_t(row) * inner : nullptr, c_.intermediate);
    pool_.barrier();
  }
  const Output down = {&layer.down, out_};
  products(thread, active, m_, &down, 1, next);
}

void Forward::activate(float* gate, const float* up, int count) const {
  switch (c_.activation) {
    case Activation::kSilu: lanes_.silu(gate, count); break;
    case Activation::kGeluTanh: lanes_.gelu_tanh(gate, count); break;
    case Activation::kGelu:
      for (int i = 0; i < count; i++) gate[i] = 0.5f * gate[i] * (1.0f + std::erf(gate[i] * 0.70710678f));
      break;
    case Activation::kRelu:
      for (int i = 0; i < count; i++) gate[i] = gate[i] > 0 ? gate[i] : 0.0f;
  }
  if (up) lanes_.multiply(up, gate, count);
}

// ---- products ----

// `next`: the first matrix that comes after these.
void Forward::products(int thread, const float* x, int m, const Output* outputs, int count, const Matrix& next) {
  const Inputs inputs{x, m, isa_, arithmetic_};
  if (m > 1) return spread(inputs, outputs, count);
  share(thread, inputs, outputs, count);
  pool_.barrier(ahead(thread, next));
}

// One row: every thread prepares it for itself.
void Forward::share(int thread, const Inputs& inputs, const Output* outputs, int count) {
  const Matrix* prepared = nullptr;
  uint8_t* panels = own_[size_t(thread)].panels;
  for (int i = 0; i < count; i++) {
    const Matrix& matrix = *outputs[i].matrix;
    if (matrix.type == Matrix::kPacked && !(prepared && same_panels(*prepared, matrix))) {
      prepare(matrix, inputs, 0, panels);
      prepared = &matrix;
    }
    const Rows blocks = share_of(thread, matrix.blocks());
    multiply(matrix, inputs, panels, outputs[i].y, blocks.first, blocks.last);
  }
}

// Many rows: panels, then blocks, are taken by whoever is free. Ends with a barrier.
void Forward::spread(const Inputs& inputs, const Output* outputs, int count) {
  for (int i = 0; i < count;) {
    const Matrix& first = *outputs[i].matrix;
    int last = i + 1, blocks = first.blocks();
    if (first.type == Matrix::kPacked) {
      const int panels = potq_panels(isa_, arithmetic_, inputs.m);
      for (int panel = pool_.take(1); panel < panels; panel = pool_.take(1)) prepare(first, inputs, panel, panels_);
      pool_.barrier();
    }
    for (; last < count; last++) {
      const Matrix& next = *outputs[last].matrix;
      if (!(first.type == next.type && (first.type != Matrix::kPacked || same_panels(first, next)))) break;
      blocks += next.blocks();
    }
    for (int task = pool_.take(kTaskBlocks); task < blocks; task = pool_.take(kTaskBlocks)) {
      int start = task, end = std::min(task + kTaskBlocks, blocks);
      for (int k = i; k < last && end > 0; k++) {
        const int own = outputs[k].matrix->blocks();
        multiply(*outputs[k].matrix, inputs, panels_, outputs[k].y, std::max(start, 0), std::min(end, own));
        start -= own, end -= own;
      }
    }
    pool_.barrier();
    i = last;
  }
}

// Norm and head, of the rows whose logits are wanted.
void Forward::finish(int thread, float* x, float* h, float* pending) {
  const Own& own = own_[size_t(thread)];
  const Output output = {&model_.head(), logits_};
  const int count = int(wanted_.size());
  if (count > 1) {
    const Rows mine = share_of(thread, count);
    for (int i = mine.first; i < mine.last; i++)  // of x it reads what another wrote before the last barrier
      norm_row(wanted_[size_t(i)], pending, x, h + size_t(i) * size_t(c_.hidden), own.x);
    pool_.barrier();
    return spread(Inputs{h, count, isa_, arithmetic_}, &output, 1);
  }
  norm_row(wanted_[0], pending, x, own.h, own.x);  // every thread for itself
  share(thread, Inputs{own.h, 1, isa_, arithmetic_}, &output, 1);
}

// `free`: room for a row, or the row itself.
void Forward::norm_row(int row, const float* pending, const float* x, float* h, float* free) const {
  const size_t at = size_t(row) * size_t(c_.hidden);
  if (x + at != free) std::copy(x + at, x + at + size_t(c_.hidden), free);
  add(model_.layers.back().mlp_post_norm, pending + at, free, h);
  norm(model_.final_norm, free, h);
}

}  // namespace engine
}  // namespace potq
