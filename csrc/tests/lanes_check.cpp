#include "lanes_check.h"

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

float number(SplitMix* random) { return float(int32_t(random->next() >> 32)) * 0x1p-31f; }  // -1 to 1

// float16, finite and below 2.
uint16_t half(SplitMix* random) {
  const uint64_t bits = random->next();
  return uint16_t((bits & 0x83ff) | (bits >> 32) % 15 << 10);
}

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
    for (float& n : q) n = number(random);
    for (Halves* halves : {&keys, &values}) {
      for (uint16_t& n : *halves) n = half(random);
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

// compute(instruction set's lanes) must give the same bits on all of them; near(result) compares with double precision. What is
// wrong; or null.
template <class Compute, class Near>
const char* check(const Compute& compute, const Near& near, uint64_t* hash) {
  Floats first;
  for (int32_t isa = 0; potq_isa_name(isa); isa++) {
    if (potq_isa_usable(isa) != 1) continue;
    const Floats found = compute(potq::engine::lanes(isa));
    if (first.empty()) {
      first = found;
      if (!near(found)) return "not near double precision";
    }
    if (std::memcmp(first.data(), found.data(), found.size() * sizeof(float))) return "other bits on another instruction set";
  }
  for (const float number : first) *hash = (*hash ^ potq::bits_of(number)) * 0x100000001b3u;
  return nullptr;
}

// ---- products

struct Weights {
  int rows, columns;
  Floats floats;
  Halves halves, bfloats;

  Weights(int rows, int columns, SplitMix* random) : rows(rows), columns(columns) {
    for (int i = 0; i < rows * columns; i++) {
      floats.push_back(number(random));
      halves.push_back(half(random));
      bfloats.push_back(potq::to_bfloat16(number(random)));
    }
  }
};

Floats multiply(const Lanes& lanes, const Weights& w, int kind, const Floats& x, int m) {
  Floats y(size_t(m * w.rows), NAN);
  const void* values[] = {w.floats.data(), w.halves.data(), w.bfloats.data()};
  const auto product = kind == 0 ? lanes.product : kind == 1 ? lanes.product_half : lanes.product_bfloat16;
  product({values[kind], x.data(), y.data(), w.rows, m, w.columns, size_t(w.rows)});
  return y;
}

// Numbers are below 2, and no sum has more roundings than columns.
bool near(const Weights& w, int kind, const Floats& x, int m, const Floats& y) {
  for (int i = 0; i < m; i++) {
    for (int r = 0; r < w.rows; r++) {
      double expected = 0;
      for (int k = 0; k < w.columns; k++) {
        const size_t at = size_t(r * w.columns + k);
        const float weight = kind == 0   ? w.floats[at]
                             : kind == 1 ? potq::from_float16(w.halves[at])
                                         : potq::from_bfloat16(w.bfloats[at]);
        expected += double(weight) * double(x[size_t(i * w.columns + k)]);
      }
      if (!(std::fabs(double(y[size_t(i * w.rows + r)]) - expected) < 1e-6 * (w.columns + 1))) return false;
    }
  }
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
        const Case c({size, group, rows, count}, &random);
        const char* wrong = check([&](const Lanes& lanes) { return attend(lanes, c); },
                                  [&](const Floats& found) { return near(c, found); }, &hash);
        if (wrong) {
          std::fprintf(stderr, "attention: %s; heads of %d, groups of %d, %d rows, %d positions\n", wrong, size, group, rows,
                       count);
          return false;
        }
        cases++;
      }
    }
  }
  std::printf("attention, %d cases: %016llx\n", cases, static_cast<unsigned long long>(hash));
  return true;
}

bool check_products() {
  SplitMix random(27);
  uint64_t hash = 0xcbf29ce484222325u;
  int cases = 0;
  for (const int columns : {1, 15, 16, 17, 48, 100, 129}) {
    for (const int rows : {1, 2, 3, 4, 7, 16}) {
      const Weights weights(rows, columns, &random);
      for (const int m : {1, 2, 3, 4, 5, 6, 7, 13}) {
        Floats x(size_t(m * columns));
        for (float& n : x) n = number(&random);
        for (int kind = 0; kind < 3; kind++, cases++) {
          const char* wrong = check([&](const Lanes& lanes) { return multiply(lanes, weights, kind, x, m); },
                                    [&](const Floats& found) { return near(weights, kind, x, m, found); }, &hash);
          if (wrong) {
            std::fprintf(stderr, "products: %s; %d rows, %d columns, m = %d, type %d\n", wrong, rows, columns, m, kind);
            return false;
          }
        }
      }
    }
  }
  std::printf("products, %d cases: %016llx\n", cases, static_cast<unsigned long long>(hash));
  return true;
}
