// A weight as the engine multiplies with it: packed codes in the kernels' tiles, or floats as the file has them.
#pragma once

#include <cstdint>
#include <vector>

#include "../potq.h"
#include "pool.h"

namespace potq {
namespace engine {

struct Matrix {
  enum Type : uint8_t { kPacked, kFloat32, kFloat16, kBFloat16 };
  Type type = kFloat32;
  int rows = 0, columns = 0;
  potq_format format = {};         // packed
  const uint8_t* tiles = nullptr;  // packed
  const void* values = nullptr;    // floats, row-major
  std::vector<float> row_scale;    // packed: multiplies outputs; or empty
  std::vector<float> bias;         // or empty

  int blocks() const { return (rows + 15) / 16; }  // of 16 rows, which is what threads divide
  Ahead part(int first, int last) const;           // the bytes of blocks [first, last), some of them if they are many
};

// Row `row` as float32 (an embedding's).
void read_row(const Matrix& matrix, int row, float* to);

// What the products of some rows of activations need.
struct Inputs {
  const float* x;  // m x columns
  int m;
  int32_t isa, arithmetic;
};

// Whether two matrices read the same prepared activations.
bool same_panels(const Matrix& a, const Matrix& b);

// y (m x rows) for blocks [first, last); panels hold x, prepared, if the matrix is packed.
void multiply(const Matrix& matrix, const Inputs& inputs, const uint8_t* panels, float* y, int first, int last);
void prepare(const Matrix& matrix, const Inputs& inputs, int panel, uint8_t* panels);

}  // namespace engine
}  // namespace potq
