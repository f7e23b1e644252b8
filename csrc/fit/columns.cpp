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
 * A block is as many columns as stay in the first-level cache with their part of U or H; what a block does to the columns
 * behind it is one matrix product, which the caller does. The alternative, whole columns at a time over all rows, is what torch
 * can express: some 200 000 small calls for a small model, each bound by memory. Rows are independent, so any number of threads
 * gives the same bits.
 */
#include "../potq.h"
#include "levels.h"

namespace potq {
namespace {

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

void descend_row(const potq_columns& c, int64_t row, float* gradient, const float* hessian, float* values, float* changes) {
  for (int32_t j = 0; j < c.columns; ++j) {
    const float* h = hessian + static_cast<int64_t>(j) * c.columns;
    const float value = round_to_grid(c, row, j, values[j] - gradient[j] / h[j]);
    const float change = value - values[j];
    changes[j] = change;
    if (change == 0.0f) continue;
    values[j] = value;
    for (int32_t k = 0; k < c.columns; ++k) gradient[k] += change * h[k];
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
  const int64_t n = block->columns;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < block->rows; ++row)
    potq::descend_row(*block, row, gradient + row * n, hessian, values + row * n, changes + row * n);
}

}  // extern "C"
