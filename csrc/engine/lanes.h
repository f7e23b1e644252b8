// What the engine computes beside the products of packed weights: products of floats, norms, rotations' rows, attention,
// activations. Once in portable C++ (lanes_body.h), compiled for several instruction sets. A sum is taken in one order, in 16
// lanes or number by number, whatever the width of the vectors; and no product is contracted into an fma. So every instruction
// set gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace potq {
namespace engine {

constexpr int kKeyBlock = 16;  // keys that lie interleaved

// Query heads that share a key-value head, of some rows of activations.
template <class T>
struct HeadRows {
  T* first;
  size_t stride;  // from row to row
  int rows, group;
  T* head(int i, int size) const { return first + size_t(i / group) * stride + size_t(i % group) * size_t(size); }
};

// y (m rows, `stride` apart) = x (m x columns) times rows of weights (rows x columns; float32, float16 or bfloat16).
struct Product {
  const void* w;
  const float* x;
  float* y;
  int rows, m, columns;
  size_t stride;
};

struct Lanes {
  int tile;  // heads that `score` and `mix` take best together
  void (*product)(const Product& p);
  void (*product_half)(const Product& p);
  void (*product_bfloat16)(const Product& p);
  // Scores of heads with blocks of kKeyBlock keys (float16; block, number of the head, key): head h's go to scores + h *
  // stride, times scale. Blocks may hold keys that no head sees.
  void (*score)(const HeadRows<const float>& q, const uint16_t* keys, int size, int blocks, float scale, float* scores,
                size_t stride);
  // out += weights (a row for each head, `stride` apart, of `count`) x values (float16; count x size, and 15 numbers behind
  // them that are read in vain)
  void (*mix)(const float* weights, size_t stride, const uint16_t* values, int size, int count, const HeadRows<float>& out);
  void (*to_half)(const float* from, uint16_t* to, int count);
  void (*rms_norm)(const float* x, const float* weight, float epsilon, float* y, int count);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float epsilon, float* y, int count);
  void (*add)(const float* x, float* y, int count);       // y += x
  void (*softmax)(float* x, int count);                   // in place
  void (*silu)(float* x, int count);                      // in place
  void (*gelu_tanh)(float* x, int count);                 // in place
  void (*multiply)(const float* x, float* y, int count);  // y *= x
};

// By the number of an instruction set (potq_isa_name); those without a version of their own get the portable one.
const Lanes& lanes(int32_t isa);

extern const Lanes kPortableLanes, kAvx2Lanes, kAvx512Lanes;

}  // namespace engine
}  // namespace potq
