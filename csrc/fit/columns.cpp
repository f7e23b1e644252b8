/* Rounding a block of columns one after another, each choice made in view of those before it.
 *
 * Both routines minimize (w - v) H (w - v)^T over the values v that the grid has, for every row w by itself; H is the matrix of
 * second moments of the layer's inputs, so that this is the squared error of the layer's output.
 *
 * compensate (GPTQ, arXiv 2210.17323, eq. 2 and 3): with U the upper Cholesky factor of H^-1,
 *     v_j = round(w_j),  e_j = (w_j - v_j) / U_jj,  w_k -= e_j U_jk for every k > j.
 * descend (coordinate descent): with the gradient g = (v - w) H, the best v_j given all others is
 *     v_j' = round(v_j - g_j / H_jj),  g += (v_j' - v_j) H_j.
 * Round is to the nearest of s (level + z): s and z are the column's group's scale and shift. A zero scale gives zero.
 *
 * compensate takes as many columns as stay in the first-level cache with their part of U; what they do to the columns behind
 * them is one matrix product, which the caller does. The alternative, whole columns at a time over all rows, is what torch
 * can express: some 200 000 small calls for a small model, each bound by memory.
 *
 * descend takes all columns. After GPTQ some 6 % of the codes change in a first sweep, and 2 % in a sixth; so g follows by the
 * rows of H that belong to them, a twentieth of the work of a matrix product. Every entry of g gets its changes in the order
 * of the columns. Rows are independent, so any number of threads gives the same bits.
 */
#include <algorithm>

#include "../potq.h"
#include "clones.h"
#include "levels.h"

namespace potq {
namespace {

constexpr int32_t kPart = 128;     // columns that are rounded before the others' gradients follow
constexpr int32_t kStretch = 512;  // columns whose gradients follow at a time: their part of H stays in the second-level cache

float nearest(const potq_columns& c, float x) {
  if (c.n_levels > kCounted) return searched_level(c, x);
  int32_t found = 0;
  for (int32_t i = 0; i + 1 < c.n_levels; ++i) found += x >= c.boundaries[i];
  return c.levels[found];
}

float round_to_grid(const potq_columns& c, int64_t row, int32_t column, float weight) {
  const int64_t at = row * c.groups + c.group[column];
  const float scale = c.scale[at], shift = c.shift ? c.shift[at] : 0.0f;
  return scale != 0.0f ? scale * (nearest(c, weight / scale - shift) + shift) : 0.0f;
}

void compensate_row(const potq_columns& c, int64_t row, float* weights, const float* factor, float* values, float* errors) {
  for (int32_t j = 0; j < c.columns; ++j) {
    const float* u = factor + static_cast<int64_t>(j) * c.columns;
    values[j] = round_to_grid(c, row, j, weights[j]);
    const float error = (weights[j] - values[j]) / u[j];
    errors[j] = error;
    for (int32_t k = j + 1; k < c.columns; ++k) weights[k] -= error * u[k];
  }
}

// Rounds the columns [first, last) of a row, with the gradient of these columns alone.
void descend_part(const potq_columns& c, int64_t row, int32_t first, int32_t last, float* gradient, const float* hessian,
                  float* values, float* changes) {
  for (int32_t j = first; j < last; ++j) {
    const float* h = hessian + static_cast<int64_t>(j) * c.columns;
    const float value = round_to_grid(c, row, j, values[j] - gradient[j] / h[j]);
    const float change = value - values[j];
    changes[j] = change;
    if (change == 0.0f) continue;
    values[j] = value;
    for (int32_t k = first; k < last; ++k) gradient[k] += change * h[k];
  }
}

// What a row's changes of some columns (their rows of H, and by how much) do to the gradient of others.
struct Changes {
  int32_t count = 0;
  const float* h[kPart];
  float by[kPart];
};

// Four at a time, one after another as if alone: the gradient is read and written a quarter as often.
POTQ_CLONES void follow(const Changes& changes, int32_t first, int32_t last, float* __restrict gradient) {
  int32_t n = 0;
  for (; n + 4 <= changes.count; n += 4) {
    const float* __restrict h0 = changes.h[n], * __restrict h1 = changes.h[n + 1];
    const float* __restrict h2 = changes.h[n + 2], * __restrict h3 = changes.h[n + 3];
    const float by0 = changes.by[n], by1 = changes.by[n + 1], by2 = changes.by[n + 2], by3 = changes.by[n + 3];
    for (int32_t k = first; k < last; ++k)
      gradient[k] = (((gradient[k] + by0 * h0[k]) + by1 * h1[k]) + by2 * h2[k]) + by3 * h3[k];
  }
  for (; n < changes.count; ++n) {
    const float* __restrict h = changes.h[n];
    const float by = changes.by[n];
    for (int32_t k = first; k < last; ++k) gradient[k] += by * h[k];
  }
}

void descend_rows(const potq_columns& c, int64_t top, int64_t bottom, float* gradient, const float* hessian, float* values,
                  float* changes) {
  const int64_t n = c.columns;
  for (int32_t first = 0; first < c.columns; first += kPart) {
    const int32_t last = std::min(first + kPart, c.columns);
    for (int64_t row = top; row < bottom; ++row)
      descend_part(c, row, first, last, gradient + row * n, hessian, values + row * n, changes + row * n);
    for (int32_t start = 0; start < c.columns; start += kStretch) {
      const int32_t stop = std::min(start + kStretch, c.columns);
      for (int64_t row = top; row < bottom; ++row) {
        Changes found;
        for (int32_t j = first; j < last; ++j) {
          if (changes[row * n + j] == 0.0f) continue;
          found.h[found.count] = hessian + j * n;
          found.by[found.count++] = changes[row * n + j];
        }
        if (found.count == 0) continue;
        if (start < first) follow(found, start, std::min(stop, first), gradient + row * n);
        if (stop > last) follow(found, std::max(start, last), stop, gradient + row * n);
      }
    }
  }
}

}  // namespace
}  // namespace potq

extern "C" {

void potq_compensate(const potq_columns* block, float* weights, const float* factor, float* values, float* errors,
                     int32_t threads) {
  const int64_t n = block->columns;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < block->rows; ++row)
    potq::compensate_row(*block, row, weights + row * n, factor, values + row * n, errors + row * n);
}

void potq_descend(const potq_columns* block, float* gradient, const float* hessian, float* values, float* changes,
                  int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int32_t part = 0; part < threads; ++part)
    potq::descend_rows(*block, block->rows * part / threads, block->rows * (part + 1) / threads, gradient, hessian, values,
                       changes);
}

}  // extern "C"
