#include "attention_check.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../engine/lanes.h"
#include "../numbers.h"
#include "../potq.h"
#include "splitmix.h"

namespace {

using potq::engine::HeadRows;
using potq::engine::kKeyBlock;
using potq::engine::Lanes;
using Floats = std::vector<float>;
using Halves = std::vector<uint16_t>;

constexpr float kScale = 0.25f;

struct Shape {
  int size, group, rows, count;  // count: positions
  int heads() const { return group * rows; }
};

// Buffers have exactly their size, for AddressSanitizer to see what is beside it.
struct Case {
  Shape shape;
  int blocks;
  Floats q;
  Halves keys, values;  // keys interleaved, in whole blocks; values and the numbers that are read in vain, which are NaN

  Case(const Shape& shape, SplitMix* random) : shape(shape), blocks((shape.count + kKeyBlock - 1) / kKeyBlock) {
    q.resize(size_t(shape.heads() * shape.size));
    keys.resize(size_t(blocks * kKeyBlock * shape.size));
    values.resize(size_t(shape.count * shape.size));
    for (float& number : q) number = float(int32_t(random->next() >> 32)) * 0x1p-31f;  // -1 to 1
    for (Halves* halves : {&keys, &values}) {
      for (uint16_t& half : *halves) half = uint16_t(random->next() & 0x83ff) | uint16_t((random->next() % 15) << 10);
    }
    values.resize(values.size() + 15, 0x7e00);
  }

  double key(int position, int d) const {
    return potq::from_float16(keys[size_t((position / kKeyBlock * shape.size + d) * kKeyBlock + position % kKeyBlock)]);
  }
  double value(int position, int d) const { return potq::from_float16(values[size_t(position * shape.size + d)]); }
};

Floats attend(const Lanes& lanes, const Case& c) {
  const Shape& s = c.shape;
  const size_t stride = size_t(c.blocks * kKeyBlock), row = size_t(s.group * s.size);
  Floats scores(size_t(s.heads()) * stride, NAN), out(size_t(s.heads() * s.size), 0.0f);
  lanes.score({c.q.data(), row, s.rows, s.group}, c.keys.data(), s.size, c.blocks, kScale, scores.data(), stride);
  for (int h = 0; h < s.heads(); h++) lanes.softmax(scores.data() + size_t(h) * stride, s.count);
  // in two parts, as what some rows see alone is added apart
  const int first = s.count / 3;
  lanes.mix(scores.data(), stride, c.values.data(), s.size, first, {out.data(), row, s.rows, s.group});
  lanes.mix(scores.data() + first, stride, c.values.data() + size_t(first * s.size), s.size, s.count - first,
            {out.data(), row, s.rows, s.group});
  return out;
}

std::vector<double> expected_of(const Case& c, int head) {
  const Shape& s = c.shape;
  std::vector<double> weights(size_t(s.count)), out(size_t(s.size));
  double most = -INFINITY, sum = 0;
  for (int p = 0; p < s.count; p++) {
    double& score = weights[size_t(p)];
    for (int d = 0; d < s.size; d++) score += double(c.q[size_t(head * s.size + d)]) * c.key(p, d);
    most = std::max(most, score *= kScale);
  }
  for (double& weight : weights) sum += weight = std::exp(weight - most);
  for (int p = 0; p < s.count; p++) {
    for (int d = 0; d < s.size; d++) out[size_t(d)] += weights[size_t(p)] / sum * c.value(p, d);
  }
  return out;
}

bool wrong(const Shape& s, const char* isa, const char* what) {
  std::fprintf(stderr, "attention, %s: %s; heads of %d, groups of %d, %d rows, %d positions\n", isa, what, s.size, s.group,
               s.rows, s.count);
  return false;
}

// Values are below 2, and rounding moves a score by some units of 2^-24 for every number of a head.
bool near(const Case& c, const Floats& found) {
  for (int h = 0; h < c.shape.heads(); h++) {
    const std::vector<double> expected = expected_of(c, h);
    for (int d = 0; d < c.shape.size; d++) {
      const double error = std::fabs(found[size_t(h * c.shape.size + d)] - expected[size_t(d)]);
      if (!(error < 1e-5)) return false;
    }
  }
  return true;
}

bool check(const Shape& shape, SplitMix* random, uint64_t* hash) {
  const Case c(shape, random);
  Floats first;
  for (int32_t isa = 0; potq_isa_name(isa); isa++) {
    if (potq_isa_usable(isa) != 1) continue;
    const Floats found = attend(potq::engine::lanes(isa), c);
    if (first.empty()) {
      first = found;
      if (!near(c, found)) return wrong(shape, potq_isa_name(isa), "not near double precision");
    }
    if (std::memcmp(first.data(), found.data(), found.size() * sizeof(float)))
      return wrong(shape, potq_isa_name(isa), "other bits than on the first instruction set");
  }
  for (const float number : first) *hash = (*hash ^ potq::bits_of(number)) * 0x100000001b3u;
  return true;
}

}  // namespace

bool check_attention() {
  SplitMix random(26);
  uint64_t hash = 0xcbf29ce484222325u;
  int cases = 0;
  for (const int size : {1, 3, 10, 16, 17, 40, 64, 80, 111, 128}) {
    for (const int group : {1, 2, 3, 5, 7, 8, 29}) {
      for (const int rows : {1, 2, 4, 6, 12}) {
        const int count = 1 + (cases * 13 + size) % (cases % 7 ? 70 : 300);
        if (!check({size, group, rows, count}, &random, &hash)) return false;
        cases++;
      }
    }
  }
  std::printf("attention, %d cases: %016llx\n", cases, static_cast<unsigned long long>(hash));
  return true;
}
