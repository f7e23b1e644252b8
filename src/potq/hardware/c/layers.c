#include "layers.h"

#include <stddef.h>

#include "arithmetic.h"
#include "weights.h"

#define HEADS_PER_KEY (POTQ_HEADS / POTQ_KV_HEADS)
#define KV_WIDTH (POTQ_KV_HEADS * POTQ_HEAD_DIM)
#define WIDTH (POTQ_HEADS * POTQ_HEAD_DIM)

static int8_t keys[POTQ_LAYERS][POTQ_CONTEXT][KV_WIDTH];
static int8_t values[POTQ_LAYERS][POTQ_CONTEXT][KV_WIDTH];
static int8_t key_shifts[POTQ_LAYERS][POTQ_CONTEXT][POTQ_KV_HEADS];
static int8_t value_shifts[POTQ_LAYERS][POTQ_CONTEXT][POTQ_KV_HEADS];
static int32_t logarithms[POTQ_CONTEXT];
static int32_t normed[POTQ_HIDDEN];
static int32_t query[WIDTH], key[KV_WIDTH], value[KV_WIDTH], mixed[WIDTH];
static int32_t branch[POTQ_HIDDEN];
static int32_t up[POTQ_INTERMEDIATE];
#if POTQ_GATED
static int32_t gate[POTQ_INTERMEDIATE];
#endif

static uint32_t largest_size(const int32_t* numbers, unsigned count) {
  uint32_t largest = 0;
  unsigned i;
  for (i = 0; i < count; i++) {
    uint32_t size = potq_size(numbers[i]);
    if (size > largest) largest = size;
  }
  return largest;
}

void potq_normalize(const potq_norm* norm, const int32_t* given, int32_t* results) {
  uint32_t squares = 0;
  uint32_t inverse;
  unsigned shift, even, i;
#if POTQ_CENTERED
  int64_t sum = 0;
  int64_t mean;
  for (i = 0; i < POTQ_HIDDEN; i++) sum += given[i];
  mean = sum / POTQ_HIDDEN;
  for (i = 0; i < POTQ_HIDDEN; i++) results[i] = potq_saturated(given[i] - mean);
#else
  for (i = 0; i < POTQ_HIDDEN; i++) results[i] = given[i];
#endif
  shift = potq_bit_length(largest_size(results, POTQ_HIDDEN));
  shift = shift > 15 ? shift - 15 : 0;
  for (i = 0; i < POTQ_HIDDEN; i++) {
    int32_t part = results[i] >> shift;
    squares += (uint32_t)(part * part) >> POTQ_SQUARE_SHIFT;
  }
  if (2 * shift + POTQ_SQUARE_SHIFT < 32) squares += (uint32_t)POTQ_EPSILON >> (2 * shift + POTQ_SQUARE_SHIFT);
  if (squares == 0) squares = 1;
  even = (32 - potq_bit_length(squares)) & ~1u;
  inverse = (1u << 31) / potq_root(squares << even);
  shift += (unsigned)norm->fraction + 15 - (even >> 1);
  for (i = 0; i < POTQ_HIDDEN; i++) {
    int32_t factor = (int32_t)((uint32_t)(int32_t)norm->gains[i] * inverse);
    results[i] = potq_saturated((int64_t)results[i] * factor >> shift);
    if (norm->bias != NULL) results[i] = potq_saturated((int64_t)results[i] + norm->bias[i]);
  }
}

/* A head as whole numbers of 15 bits; returns their shift. */
static int to_int15(int32_t* head) {
  int shift = (int)potq_bit_length(largest_size(head, POTQ_HEAD_DIM)) - 14;
  unsigned i;
  if (shift < 0) shift = 0;
  for (i = 0; i < POTQ_HEAD_DIM; i++) head[i] = potq_scaled(head[i], -shift);
  return shift;
}

static int to_int8(const int32_t* head, int8_t* codes) {
  uint32_t largest = largest_size(head, POTQ_HEAD_DIM);
  int shift = (int)potq_bit_length(largest) - 7;
  unsigned i;
  if (shift < 0) shift = 0;
  if (potq_scaled((int32_t)largest, -shift) > 127) shift++;
  for (i = 0; i < POTQ_HEAD_DIM; i++) codes[i] = (int8_t)potq_scaled(head[i], -shift);
  return shift;
}

#if POTQ_ROTARY
#define HALF (POTQ_HEAD_DIM / 2)
static void rotate(int32_t* head, unsigned position) {
  const int16_t* cosine = potq_cosines + (size_t)position * HALF;
  const int16_t* sine = potq_sines + (size_t)position * HALF;
  unsigned i;
  for (i = 0; i < HALF; i++) {
    int32_t first = head[i];
    int32_t second = head[i + HALF];
    head[i] = (first * cosine[i] - second * sine[i] + (1 << 13)) >> 14;
    head[i + HALF] = (second * cosine[i] + first * sine[i] + (1 << 13)) >> 14;
  }
}
#endif

static void remember(unsigned layer, unsigned position) {
  unsigned head;
  for (head = 0; head < POTQ_KV_HEADS; head++) {
    int32_t* turned = key + head * POTQ_HEAD_DIM;
    int shift = to_int15(turned);
#if POTQ_ROTARY
    rotate(turned, position);
#endif
    shift += to_int8(turned, keys[layer][position] + head * POTQ_HEAD_DIM);
    key_shifts[layer][position][head] = (int8_t)shift;
    shift = to_int8(value + head * POTQ_HEAD_DIM, values[layer][position] + head * POTQ_HEAD_DIM);
    value_shifts[layer][position][head] = (int8_t)shift;
  }
}

/* binary logarithms of all positions' weights, with 8 bits behind the point; returns the largest */
static int32_t score(unsigned layer, unsigned position, unsigned head, int32_t* turned) {
  unsigned kv = head / HEADS_PER_KEY;
  int32_t largest = -POTQ_LIMIT;
  int shift = to_int15(turned);
  unsigned i, t;
#if POTQ_ROTARY
  rotate(turned, position);
#endif
  for (i = 0; i < POTQ_HEAD_DIM; i++) turned[i] = (turned[i] * POTQ_FACTOR + (1 << 14)) >> 15;
  shift += POTQ_FACTOR_EXPONENT + 15 - 2 * POTQ_FRACTION + 8;
  for (t = 0; t <= position; t++) {
    const int8_t* other = keys[layer][t] + kv * POTQ_HEAD_DIM;
    int32_t sum = 0;
    for (i = 0; i < POTQ_HEAD_DIM; i++) sum += turned[i] * other[i];
    logarithms[t] = potq_scaled(sum, shift + key_shifts[layer][t][kv]);
    if (logarithms[t] > largest) largest = logarithms[t];
  }
  return largest;
}

static void attend(unsigned layer, unsigned position, unsigned head) {
  unsigned kv = head / HEADS_PER_KEY;
  int32_t largest = score(layer, position, head, query + head * POTQ_HEAD_DIM);
  int32_t* sums = mixed + head * POTQ_HEAD_DIM;
  uint32_t total = 0;
  int coarsest = 0;
  unsigned i, t, shift;
  for (i = 0; i < POTQ_HEAD_DIM; i++) sums[i] = 0;
  for (t = 0; t <= position; t++) {
    if (value_shifts[layer][t][kv] > coarsest) coarsest = value_shifts[layer][t][kv];
  }
  for (t = 0; t <= position; t++) {
    uint32_t below = (uint32_t)largest - (uint32_t)logarithms[t];
    int32_t weight = (below >> 8) > 15 ? 0 : (int32_t)((uint32_t)potq_powers[below & 255] >> (below >> 8));
    const int8_t* other = values[layer][t] + kv * POTQ_HEAD_DIM;
    weight >>= POTQ_WEIGHT_SHIFT;
    total += (uint32_t)weight;
    weight >>= coarsest - value_shifts[layer][t][kv];
    if (weight == 0) continue;
    for (i = 0; i < POTQ_HEAD_DIM; i++) sums[i] += weight * other[i];
  }
  shift = potq_bit_length(total);
  shift = shift > 16 ? shift - 16 : 0;
  for (i = 0; i < POTQ_HEAD_DIM; i++) {
    sums[i] = potq_scaled((sums[i] >> shift) * 256 / (int32_t)(total >> shift), coarsest - 8);
  }
}

static int32_t activate(int32_t number) {
  uint32_t size = potq_size(number);
  uint32_t index = size >> 12;
  uint32_t part;
  int32_t share;
  if (index > 255) index = 255;
  part = size - (index << 12);
  if (part > 4096) part = 4096;
  share = potq_gates[index];
  share += (((int32_t)potq_gates[index + 1] - share) * (int32_t)part) >> 12;
  if (number < 0) share = 32768 - share;
  return potq_saturated((int64_t)number * share >> 15);
}

static void add_branch(int32_t* hidden) {
  unsigned i;
  for (i = 0; i < POTQ_HIDDEN; i++) hidden[i] = potq_saturated((int64_t)hidden[i] + branch[i]);
}

void potq_run_block(const potq_block* block, unsigned layer, unsigned position, int32_t* hidden) {
  unsigned i;
  potq_normalize(&block->before_attention, hidden, normed);
  potq_load(&block->query, normed, NULL);
  potq_multiply(&block->query, query);
  potq_load(&block->key, normed, &block->query);
  potq_multiply(&block->key, key);
  potq_load(&block->value, normed, &block->key);
  potq_multiply(&block->value, value);
  remember(layer, position);
  for (i = 0; i < POTQ_HEADS; i++) attend(layer, position, i);
  potq_load(&block->output, mixed, NULL);
  potq_multiply(&block->output, branch);
  add_branch(hidden);
  potq_normalize(&block->before_mlp, hidden, normed);
  potq_load(&block->up, normed, NULL);
  potq_multiply(&block->up, up);
#if POTQ_GATED
  potq_load(&block->gate, normed, &block->up);
  potq_multiply(&block->gate, gate);
  for (i = 0; i < POTQ_INTERMEDIATE; i++) {
    up[i] = potq_saturated((int64_t)activate(gate[i]) * up[i] >> POTQ_FRACTION);
  }
#else
  for (i = 0; i < POTQ_INTERMEDIATE; i++) up[i] = activate(up[i]);
#endif
  potq_load(&block->down, up, NULL);
  potq_multiply(&block->down, branch);
  add_branch(hidden);
}
