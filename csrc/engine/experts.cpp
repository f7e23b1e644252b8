// Experts of the forward pass: a router chooses some of them for each token, and what they put out is added up.
//
// Many tokens: those of an expert are laid one behind the other, each in a place of its own, so that its weights are read once
// for all of them. Threads take blocks of experts' weights as they come free. One token: threads divide the rows of all the
// experts that it takes, and each thread chooses for itself.
//
// A token's experts do not depend on the tokens beside it: its products are the same bits among any number of rows, and its
// experts are added up in ascending order.
#include <algorithm>

#include "../kernels/layout.h"
#include "forward.h"

namespace potq {
namespace engine {
namespace {
constexpr int kTaskBlocks = 4;  // row blocks a thread takes at a time
}  // namespace

void Forward::lay_out_experts(Parts* parts) {
  const size_t experts = size_t(c_.mixture.experts), chosen = size_t(c_.mixture.chosen), places = size_t(kRows) * chosen;
  size_t bytes = 0;  // of a place's panels, whoever shares them
  for (const Layer& layer : model_.layers) {
    for (const std::vector<Matrix>* matrices : {&layer.experts.gate, &layer.experts.down}) {
      if (matrices->empty() || matrices->front().type != Matrix::kPacked) continue;
      for (int m = 1; m <= kRows; m++)
        bytes = std::max(bytes, potq_panels_bytes(&matrices->front().format, isa_, arithmetic_, m) / size_t(m) + 1);
    }
  }
  place_bytes_ = round_up(bytes, 64);
  for (Own& own : own_) {
    own.odds = parts->take<float>(experts);
    own.choices = parts->take<Choice>(chosen);
  }
  router_ = parts->take<float>(size_t(kRows) * experts);
  choices_ = parts->take<Choice>(places);
  places_ = parts->take<int>(places);
  owners_ = parts->take<int>(places);
  counts_ = parts->take<int>(experts);
  taken_ = parts->take<float>(places * size_t(c_.hidden));
  place_panels_ = parts->take<uint8_t>(places * place_bytes_);
  groups_.reserve(std::min(experts, places));
}

// The experts of a token by their scores, in ascending order; of equal ones the first. `odds`: room for a number of each.
void Forward::choose(const float* scores, float* odds, Choice* to) const {
  const Mixture& mixture = c_.mixture;
  constexpr float kTaken = -1;  // no probability
  std::copy(scores, scores + mixture.experts, odds);
  lanes_.softmax(odds, mixture.experts);
  float sum = 0;
  for (int i = 0; i < mixture.chosen; i++) {
    int best = -1;
    for (int e = 0; e < mixture.experts; e++) {
      if (odds[e] != kTaken && (best < 0 || odds[e] > odds[best])) best = e;
    }
    to[i] = {best, odds[best]};
    sum += odds[best];
    odds[best] = kTaken;
  }
  for (int i = 0; i < mixture.chosen && mixture.normed; i++) to[i].weight /= sum;
  std::sort(to, to + mixture.chosen, [](const Choice& a, const Choice& b) { return a.expert < b.expert; });
}

// Places for what all rows chose: those of an expert together.
void Forward::group() {
  const int chosen = c_.mixture.chosen, count = m_ * chosen;
  std::fill_n(counts_, c_.mixture.experts, 0);
  for (int i = 0; i < count; i++) counts_[choices_[i].expert]++;
  groups_.clear();
  for (int expert = 0, first = 0; expert < c_.mixture.experts; expert++) {
    const int rows = counts_[expert];
    if (rows) groups_.push_back({expert, first, rows});
    counts_[expert] = first;  // the next place
    first += rows;
  }
  for (int i = 0; i < count; i++) {
    const int place = places_[i] = counts_[choices_[i].expert]++;
    owners_[place] = i / chosen;
  }
}

// `x`: of all places.
Inputs Forward::inputs_of(const Group& group, const float* x, int columns) const {
  return {x + size_t(group.first) * size_t(columns), group.rows, isa_, arithmetic_};
}

void Forward::prepare_group(const Matrix& matrix, const Group& group, const float* x) {
  if (matrix.type != Matrix::kPacked) return;
  const Inputs inputs = inputs_of(group, x, matrix.columns);
  for (int panel = 0; panel < potq_panels(isa_, arithmetic_, group.rows); panel++)
    prepare(matrix, inputs, panel, panels_of(group));
}

// Calls part(group, first, last) for row blocks that nobody else takes, of `blocks` that the matrices of every group have.
template <class Part>
void Forward::in_groups(int blocks, const Part& part) {
  const int tasks = (blocks + kTaskBlocks - 1) / kTaskBlocks, all = tasks * int(groups_.size());
  for (int task = pool_.take(1); task < all; task = pool_.take(1)) {
    const int first = task % tasks * kTaskBlocks;
    part(groups_[size_t(task / tasks)], first, std::min(first + kTaskBlocks, blocks));
  }
}

// `gate` becomes act(gate) * up, in the columns of those row blocks.
void Forward::activate_blocks(float* gate, const float* up, int first, int last) const {
  const int column = first * potq::kRows, end = std::min(last * potq::kRows, c_.mixture.intermediate);
  activate(gate + column, up + column, end - column);
}

// The thread's own rows.
void Forward::choose_rows(int thread, const Matrix& router, const float* h) {
  const size_t experts = size_t(c_.mixture.experts), chosen = size_t(c_.mixture.chosen);
  const Rows rows = rows_of(thread);
  if (rows.first == rows.last) return;
  const Inputs inputs{h + size_t(rows.first) * size_t(c_.hidden), rows.last - rows.first, isa_, arithmetic_};
  multiply(router, inputs, nullptr, router_ + size_t(rows.first) * experts, 0, router.blocks());
  for (int row = rows.first; row < rows.last; row++)
    choose(router_ + size_t(row) * experts, own_[size_t(thread)].odds, choices_ + size_t(row) * chosen);
}

void Forward::gather(const Group& group, const float* h) {
  const size_t hidden = size_t(c_.hidden);
  for (int place = group.first; place < group.first + group.rows; place++)
    std::copy_n(h + size_t(owners_[place]) * hidden, hidden, taken_ + size_t(place) * hidden);
}

void Forward::experts_of_many(int thread, const Experts& experts, const float* h) {
  const size_t hidden = size_t(c_.hidden), inner = size_t(c_.mixture.intermediate), chosen = size_t(c_.mixture.chosen);
  choose_rows(thread, experts.router, h);
  pool_.barrier();
  if (thread == 0) group();
  pool_.barrier();
  in_groups(1, [&](const Group& group, int, int) {
    gather(group, h);
    prepare_group(experts.gate[size_t(group.expert)], group, taken_);
  });
  pool_.barrier();
  in_groups(experts.gate[0].blocks(), [&](const Group& group, int first, int last) {
    const Inputs inputs = inputs_of(group, taken_, c_.hidden);
    float *gate = gate_ + size_t(group.first) * inner, *up = up_ + size_t(group.first) * inner;
    multiply(experts.gate[size_t(group.expert)], inputs, panels_of(group), gate, first, last);
    multiply(experts.up[size_t(group.expert)], inputs, panels_of(group), up, first, last);
    for (size_t row = 0; row < size_t(group.rows); row++) activate_blocks(gate + row * inner, up + row * inner, first, last);
  });
  pool_.barrier();
  in_groups(1, [&](const Group& group, int, int) { prepare_group(experts.down[size_t(group.expert)], group, gate_); });
  pool_.barrier();
  in_groups(experts.down[0].blocks(), [&](const Group& group, int first, int last) {
    multiply(experts.down[size_t(group.expert)], inputs_of(group, gate_, c_.mixture.intermediate), panels_of(group),
             taken_ + size_t(group.first) * hidden, first, last);
  });
  pool_.barrier();
  const Rows rows = rows_of(thread);
  for (int row = rows.first; row < rows.last; row++)
    sum_up(choices_ + size_t(row) * chosen, places_ + size_t(row) * chosen, out_ + size_t(row) * hidden, 0, c_.hidden);
  pool_.barrier();
}

// `next`: the first matrix that comes after the experts.
void Forward::experts_of_one(int thread, const Experts& experts, const float* h, const Matrix& next) {
  const size_t hidden = size_t(c_.hidden), inner = size_t(c_.mixture.intermediate);
  const int chosen = c_.mixture.chosen, blocks = experts.gate[0].blocks();
  const Own& own = own_[size_t(thread)];
  const Inputs inputs{h, 1, isa_, arithmetic_};
  const Rows scores = share_of(thread, experts.router.blocks());
  multiply(experts.router, inputs, nullptr, router_, scores.first, scores.last);
  pool_.barrier();
  choose(router_, own.odds, own.choices);

  const Rows mine = share_of(thread, chosen * blocks);  // of all of them
  if (experts.gate[0].type == Matrix::kPacked) prepare(experts.gate[0], inputs, 0, own.panels);
  for (int i = 0; i < chosen; i++) {
    const size_t expert = size_t(own.choices[i].expert);
    const int first = std::max(mine.first - i * blocks, 0), last = std::min(mine.last - i * blocks, blocks);
    if (first >= last) continue;
    float *gate = gate_ + size_t(i) * inner, *up = up_ + size_t(i) * inner;
    multiply(experts.gate[expert], inputs, own.panels, gate, first, last);
    multiply(experts.up[expert], inputs, own.panels, up, first, last);
    activate_blocks(gate, up, first, last);
  }
  pool_.barrier(ahead(thread, experts.down[size_t(own.choices[0].expert)]));

  const Rows outputs = share_of(thread, experts.down[0].blocks());
  for (int i = 0; i < chosen; i++) {
    const Matrix& down = experts.down[size_t(own.choices[i].expert)];
    const Inputs active{gate_ + size_t(i) * inner, 1, isa_, arithmetic_};
    if (down.type == Matrix::kPacked) prepare(down, active, 0, own.panels);
    multiply(down, active, own.panels, taken_ + size_t(i) * hidden, outputs.first, outputs.last);
  }
  sum_up(own.choices, nullptr, out_, outputs.first * potq::kRows, std::min(outputs.last * potq::kRows, c_.hidden));
  pool_.barrier(ahead(thread, next));
}

// Columns [first, last) of a token's output. `places`: of its experts; null: as they come.
void Forward::sum_up(const Choice* choices, const int* places, float* to, int first, int last) const {
  if (first < last) std::fill(to + first, to + last, 0.0f);
  for (int i = 0; i < c_.mixture.chosen; i++) {
    const float* from = taken_ + size_t(places ? places[i] : i) * size_t(c_.hidden);
    for (int column = first; column < last; column++) to[column] += choices[i].weight * from[column];
  }
}

}  // namespace engine
}  // namespace potq
