/* The best path of a row through a trellis code: which level every weight takes, where half the levels are open to it.
 *
 * The code is that of src/potq/numerics/trellis.py. A state is the last three bits of the path, the newest lowest. From state s
 * the bit b leads to (2 s + b) mod 8, by a level of the subset that the register r = 2 s + b says. Two ways lead into every
 * state q: those of r = q and r = q + 8. Of two equally good ways the first is taken, and so is the first of two levels.
 *
 * potq_best_paths is the Viterbi algorithm, for sums of squared errors. kLanes rows go side by side, in loops that compilers
 * turn into vectors. The alternative, the states of one row side by side, needs a shuffle for every addition.
 *
 * potq_compensate_paths is GPTQ (fit/columns.cpp) along a path. There the error of a weight moves all weights to come, so that
 * what a level costs depends on the whole path. Every state therefore keeps the weights to come as its own best path left
 * them (per-survivor processing: Raheli, Polydoros and Tzou, IEEE Trans. Commun. 43, 1995). The sum of the squares of
 * (w_j - v_j) / U_jj along a path is exactly the output error (w - v) H (w - v)^T, so paths are compared by what is minimized.
 * The alternative, a best path for each block of columns and the block's error to the next one (QTIP, arXiv 2406.11235), feeds
 * nothing back within a block, and loses most of what GPTQ gains: docs/trellis.md has both.
 */
#include "../trellis.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "../potq.h"
#include "clones.h"

namespace potq {
namespace {

constexpr int32_t kStates = 8, kSubsets = 4, kLanes = 16;
constexpr float kFar = 1e30f;  // the cost of a state that no path reaches

// By the ways into every state: the first one into 0 to 7, then the second ones.
constexpr int32_t kSubset[2 * kStates] = {subset(0),  subset(1),  subset(2),  subset(3), subset(4),  subset(5),
                                          subset(6),  subset(7),  subset(8),  subset(9), subset(10), subset(11),
                                          subset(12), subset(13), subset(14), subset(15)};

// What is found for a column of a row: bit q says that state q is reached by its second way; then there are six bits for each
// subset, the number of its nearest level.
uint32_t level_of(uint32_t found, int32_t k) { return found >> (kStates + 6 * k) & 63; }

// The squared distance of numbers x to the nearest step * level of each subset, and which level that is.
template <int32_t n>
inline void nearest_of_subsets(const float* levels, int32_t n_levels, const float* x, const float* step,
                               float (&least)[kSubsets][n], uint32_t (&found)[n]) {
  for (int32_t i = 0; i < n; ++i) found[i] = 0;
  for (int32_t k = 0; k < kSubsets; ++k) {
    uint32_t number[n] = {};
    for (int32_t i = 0; i < n; ++i) {
      const float error = x[i] - step[i] * levels[k];
      least[k][i] = error * error;
    }
    for (int32_t j = 1; kSubsets * j + k < n_levels; ++j) {
      for (int32_t i = 0; i < n; ++i) {
        const float error = x[i] - step[i] * levels[kSubsets * j + k], square = error * error;
        number[i] = square < least[k][i] ? uint32_t(j) : number[i];
        least[k][i] = square < least[k][i] ? square : least[k][i];
      }
    }
    for (int32_t i = 0; i < n; ++i) found[i] |= number[i] << (kStates + 6 * k);
  }
}

struct Rows {
  const float* levels;
  int32_t n_levels;
  int64_t columns;
  const float *weights[kLanes], *steps[kLanes];
};

// The costs of all states behind the last column; `found` (columns x kLanes) unless it is null.
POTQ_CLONES void search(const Rows& rows, float (&cost)[kStates][kLanes], uint32_t* found) {
  for (int32_t q = 0; q < kStates; ++q)
    for (int32_t i = 0; i < kLanes; ++i) cost[q][i] = q ? kFar : 0.0f;
  for (int64_t t = 0; t < rows.columns; ++t) {
    float x[kLanes], step[kLanes], least[kSubsets][kLanes], next[kStates][kLanes];
    uint32_t column[kLanes];
    for (int32_t i = 0; i < kLanes; ++i) x[i] = rows.weights[i][t], step[i] = rows.steps[i][t];
    nearest_of_subsets<kLanes>(rows.levels, rows.n_levels, x, step, least, column);
    for (int32_t q = 0; q < kStates; ++q) {
      const float *first = cost[q >> 1], *second = cost[(q >> 1) + kStates / 2];
      const float *to_first = least[kSubset[q]], *to_second = least[kSubset[q + kStates]];
      for (int32_t i = 0; i < kLanes; ++i) {
        const float a = first[i] + to_first[i], b = second[i] + to_second[i];
        column[i] |= (b < a ? 1u : 0u) << q;
        next[q][i] = b < a ? b : a;
      }
    }
    std::memcpy(cost, next, sizeof cost);
    if (found) std::memcpy(found + t * kLanes, column, sizeof column);
  }
}

// Back from a state, weight by weight.
void trace(const uint32_t* found, int64_t columns, int32_t state, uint8_t* index) {
  for (int64_t t = columns; t-- > 0;) {
    const uint32_t column = found[t * kLanes];
    const int32_t second = column >> state & 1, k = kSubset[state + second * kStates];
    index[t] = uint8_t(kSubsets * level_of(column, k) + uint32_t(k));
    state = (state >> 1) + second * (kStates / 2);
  }
}

// The paths of one row under way: what each state's path left of the weights, and how each came to be.
struct Survivors {
  const potq_path_columns& block;
  std::vector<float> left = std::vector<float>(size_t(kStates) * block.columns), next = left;
  std::vector<float> errors = left;  // columns x states
  std::vector<uint8_t> index = std::vector<uint8_t>(left.size()), second = index;

  explicit Survivors(const potq_path_columns& which) : block(which) {}
};

// All paths through a row's columns; the costs of the states behind the last one.
POTQ_CLONES void survive(Survivors& row, const float* weights, const float* steps, const float* factor, int32_t start,
                         float (&cost)[kStates]) {
  const int32_t n = row.block.columns;
  for (int32_t q = 0; q < kStates; ++q) {
    cost[q] = q == start ? 0.0f : kFar;
    std::memcpy(&row.left[size_t(q) * n], weights, size_t(n) * sizeof(float));
  }
  for (int32_t t = 0; t < n; ++t) {
    const float* u = factor + int64_t(t) * n;
    float x[kStates], step[kStates], least[kSubsets][kStates], then[kStates];
    uint32_t found[kStates];
    for (int32_t q = 0; q < kStates; ++q) x[q] = row.left[size_t(q) * n + t], step[q] = steps[t];
    nearest_of_subsets<kStates>(row.block.levels, row.block.n_levels, x, step, least, found);
    const float weight = 1.0f / (u[t] * u[t]);
    for (int32_t q = 0; q < kStates; ++q) {
      const int32_t first = q >> 1, other = first + kStates / 2;
      const float a = cost[first] + least[kSubset[q]][first] * weight;
      const float b = cost[other] + least[kSubset[q + kStates]][other] * weight;
      const int32_t from = b < a ? other : first, k = kSubset[b < a ? q + kStates : q];
      const uint32_t level = kSubsets * level_of(found[from], k) + uint32_t(k);
      const float error = (x[from] - steps[t] * row.block.levels[level]) / u[t];
      const size_t at = size_t(t) * kStates + q;
      then[q] = b < a ? b : a, row.second[at] = b < a, row.index[at] = uint8_t(level), row.errors[at] = error;
      const float* before = &row.left[size_t(from) * n];
      float* after = &row.next[size_t(q) * n];
      for (int32_t j = t + 1; j < n; ++j) after[j] = before[j] - error * u[j];
    }
    row.left.swap(row.next);
    std::memcpy(cost, then, sizeof cost);
  }
}

int32_t best_state(const float* cost, int32_t stride) {
  int32_t best = 0;
  for (int32_t q = 1; q < kStates; ++q) best = cost[q * stride] < cost[best * stride] ? q : best;
  return best;
}

}  // namespace
}  // namespace potq

extern "C" {

void potq_best_paths(const float* levels, int32_t n_levels, const float* weights, const float* steps, int64_t rows,
                     int64_t columns, uint8_t* index, float* costs, int32_t threads) {
  using namespace potq;
#pragma omp parallel num_threads(threads)
  {
    std::vector<uint32_t> found(index ? size_t(columns) * kLanes : 0);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < rows; first += kLanes) {
      Rows some{levels, n_levels, columns, {}, {}};
      for (int32_t i = 0; i < kLanes; ++i) {  // lanes without a row repeat the last one
        const int64_t row = std::min(first + i, rows - 1);
        some.weights[i] = weights + row * columns, some.steps[i] = steps + row * columns;
      }
      float cost[kStates][kLanes];
      search(some, cost, index ? found.data() : nullptr);
      for (int32_t i = 0; i < kLanes && first + i < rows; ++i) {
        const int32_t best = best_state(&cost[0][i], kLanes);
        costs[first + i] = cost[best][i];
        if (index) trace(found.data() + i, columns, best, index + (first + i) * columns);
      }
    }
  }
}

void potq_compensate_paths(const potq_path_columns* block, const float* weights, const float* steps, const float* factor,
                           const uint8_t* ends, uint8_t* states, uint8_t* index, float* errors, int32_t threads) {
  using namespace potq;
  const int32_t n = block->columns, kept = block->kept;
#pragma omp parallel num_threads(threads)
  {
    Survivors row(*block);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < block->rows; ++r) {
      float cost[kStates];
      survive(row, weights + r * n, steps + r * n, factor, states[r], cost);
      int32_t q = ends ? ends[r] : best_state(cost, 1);
      for (int32_t t = n; t-- > 0;) {
        const size_t at = size_t(t) * kStates + q;
        if (t + 1 == kept) states[r] = uint8_t(q);
        if (t < kept) index[r * kept + t] = row.index[at], errors[r * kept + t] = row.errors[at];
        q = (q >> 1) + row.second[at] * (kStates / 2);
      }
    }
  }
}

}  // extern "C"
