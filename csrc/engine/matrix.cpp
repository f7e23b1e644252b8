#include "matrix.h"

#include <algorithm>
#include <cstring>

#include "../kernels/layout.h"
#include "../numbers.h"
#include "lanes.h"

namespace potq {
namespace engine {
namespace {

constexpr size_t kAhead = 32 << 10;  // bytes: more helps no more

potq_product product_of(const Matrix& matrix, const Inputs& inputs, float* y) {
  const bool biased = !matrix.bias.empty() && matrix.row_scale.empty();
  return {&matrix.format, matrix.tiles,      inputs.x,  biased ? matrix.bias.data() : nullptr, y, inputs.m,
          POTQ_FLOAT32,   inputs.arithmetic, inputs.isa};
}

// Row scales multiply what the products return; the bias comes behind them.
void scale_rows(const Matrix& matrix, int m, float* y, int first_row, int last_row) {
  for (int i = 0; i < m; i++) {
    float* row = y + size_t(i) * size_t(matrix.rows);
    for (int r = first_row; r < last_row; r++) {
      if (!matrix.row_scale.empty()) row[r] *= matrix.row_scale[size_t(r)];
      if (!matrix.bias.empty()) row[r] += matrix.bias[size_t(r)];
    }
  }
}

void multiply_floats(const Matrix& matrix, const Inputs& inputs, float* y, int first_row, int last_row) {
  const Lanes& lane = lanes(inputs.isa);
  const size_t at = size_t(first_row) * size_t(matrix.columns);
  const auto product = [&](const auto* values) {
    return Product{values + at, inputs.x, y + first_row, last_row - first_row, inputs.m, matrix.columns, size_t(matrix.rows)};
  };
  const uint16_t* halves = static_cast<const uint16_t*>(matrix.values);
  switch (matrix.type) {
    case Matrix::kFloat32: lane.product(product(static_cast<const float*>(matrix.values))); break;
    case Matrix::kFloat16: lane.product_half(product(halves)); break;
    default: lane.product_bfloat16(product(halves));
  }
}

}  // namespace

Ahead Matrix::part(int first, int last) const {
  if (type != kPacked) return {};  // floats are streamed, far more bytes than a cache has
  const size_t block = Layout(format).row_block_bytes;
  return {tiles + size_t(first) * block, std::min(size_t(last - first) * block, kAhead)};
}

bool same_panels(const Matrix& a, const Matrix& b) {
  if (a.type != Matrix::kPacked || b.type != Matrix::kPacked) return false;
  return Layout(a.format).block == Layout(b.format).block && a.format.reference_log2 == b.format.reference_log2 &&
         largest_level(a.format) == largest_level(b.format);  // sums may start at a multiple of it
}

void prepare(const Matrix& matrix, const Inputs& inputs, int panel, uint8_t* panels) {
  const potq_product product = product_of(matrix, inputs, nullptr);
  potq_prepare(&product, 0, inputs.m, panel, panels);
}

void multiply(const Matrix& matrix, const Inputs& inputs, const uint8_t* panels, float* y, int first, int last) {
  if (first >= last) return;
  const int first_row = first * kRows, last_row = std::min(last * kRows, matrix.rows);
  if (matrix.type != Matrix::kPacked) {
    multiply_floats(matrix, inputs, y, first_row, last_row);
    return scale_rows(matrix, inputs.m, y, first_row, last_row);
  }
  const potq_product product = product_of(matrix, inputs, y);
  potq_multiply(&product, panels, 0, inputs.m, first, last);
  if (!matrix.row_scale.empty()) scale_rows(matrix, inputs.m, y, first_row, last_row);
}

void read_row(const Matrix& matrix, int row, float* to) {
  const size_t columns = size_t(matrix.columns), at = size_t(row) * columns;
  switch (matrix.type) {
    case Matrix::kFloat32: std::memcpy(to, static_cast<const float*>(matrix.values) + at, columns * 4); break;
    case Matrix::kFloat16:
      for (size_t k = 0; k < columns; k++) to[k] = from_float16(static_cast<const uint16_t*>(matrix.values)[at + k]);
      break;
    case Matrix::kBFloat16:
      for (size_t k = 0; k < columns; k++) to[k] = from_bfloat16(static_cast<const uint16_t*>(matrix.values)[at + k]);
      break;
    case Matrix::kPacked: potq_lookup_tiles(&matrix.format, matrix.tiles, row, to); break;
  }
  if (matrix.row_scale.empty()) return;
  for (size_t k = 0; k < columns; k++) to[k] *= matrix.row_scale[size_t(row)];
}

const Lanes& lanes(int32_t isa) {
#if defined(POTQ_X86)
  const char* name = potq_isa_name(isa);
  if (name && !std::strcmp(name, "avx512vnni")) return kAvx512Lanes;
  if (name && (!std::strcmp(name, "avxvnni") || !std::strcmp(name, "avx2"))) return kAvx2Lanes;
#else
  (void)isa;
#endif
  return kPortableLanes;
}

}  // namespace engine
}  // namespace potq
