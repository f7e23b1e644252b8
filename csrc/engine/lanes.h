// What the engine computes beside the products: norms, rotations' rows, attention, activations. Once in portable C++
// (lanes_body.h), compiled for several instruction sets; all sums are taken in 16 lanes and no product is contracted into an
// fma, so every instruction set gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace potq {
namespace engine {

struct Lanes {
  float (*dot)(const float* a, const float* b, int count);
  float (*dot_half)(const uint16_t* a, const float* b, int count);      // a: float16
  float (*dot_bfloat16)(const uint16_t* a, const float* b, int count);  // a: bfloat16
  // Scores of `group` query heads (q: group x size) with blocks of 16 keys (float16; block, number of the head, key): head g's
  // go to scores + g * stride, times scale.
  void (*score)(const float* q, int group, const uint16_t* keys, int size, int blocks, float scale, float* scores,
                size_t stride);
  // out (group x size) = weights (group rows, `stride` apart, of `count`) x values (float16; count x size)
  void (*mix)(const float* weights, size_t stride, int group, const uint16_t* values, int size, int count, float* out);
  void (*to_half)(const float* from, uint16_t* to, int count);
  void (*from_half)(const uint16_t* from, float* to, int count);
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
