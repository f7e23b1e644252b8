// Portable C++: what every other instruction set must equal. 16 lanes, so that a compiler may use what vectors it knows.
#include <cmath>

#define POTQ_SMALL  // 16 lanes of plain C++ for every unrolled step are a megabyte of code
#include "../product.h"

namespace potq {
namespace {

struct Scalar {
  static constexpr int kLanes = 16, kPanelRows = 2, kFloatPanelRows = 2, kPairFrom = 99, kNarrowSteps = 0;
  static constexpr bool kDecodesFirst = false, kPairsRows = false, kOneRowApart = false;
  struct Bytes {
    uint8_t at[64];
  };
  struct Table {
    int8_t at[16];
  };
  struct Ints {
    int32_t at[16];
  };
  struct Floats {
    float at[16];
  };

  template <class T, class Function>
  static T each(Function function) {
    T result;
    for (int i = 0; i < int(sizeof result.at / sizeof result.at[0]); i++) result.at[i] = function(i);
    return result;
  }

  static int offset(const potq_format&) { return 0; }
  static int narrow_steps(const potq_format&) { return kNarrowSteps; }
  static void prefetch(const uint8_t*) {}
  static void prefetch_write(const uint8_t*) {}
  static Bytes load(const uint8_t* from) {
    return each<Bytes>([=](int i) { return from[i]; });
  }
  static Bytes low(const Bytes& v) {
    return each<Bytes>([&](int i) { return uint8_t(v.at[i] & 15); });
  }
  static Bytes high(const Bytes& v) {
    return each<Bytes>([&](int i) { return uint8_t(v.at[i] >> 4); });
  }
  static Table table(const int8_t* levels) {
    return each<Table>([=](int i) { return levels[i]; });
  }
  static Bytes bytes(int8_t v) {
    return each<Bytes>([=](int) { return uint8_t(v); });
  }
  static Bytes plus(const Bytes& a, const Bytes& b) {
    return each<Bytes>([&](int i) { return uint8_t(a.at[i] + b.at[i]); });
  }
  static Bytes shift_two(const Bytes& v) {
    return each<Bytes>([&](int i) { return uint8_t(v.at[i] >> 2); });
  }
  static Bytes thirds(const uint8_t* from, int, int half) {
    return each<Bytes>([=](int i) { return uint8_t(from[i % kThirdsBytes] << 2 >> (half + i / kThirdsBytes * 2)); });
  }
  static Bytes merge(const Bytes& codes, const Bytes& thirds) {
    return each<Bytes>([&](int i) { return uint8_t((codes.at[i] & 0x33) | (thirds.at[i] & 0x44)); });
  }
  static Bytes lookup(const Table& table, const Bytes& codes) {
    return each<Bytes>([&](int i) { return uint8_t(table.at[codes.at[i]]); });
  }
  static Bytes lookup_lower(const Table& table, const Bytes& codes) { return lookup(table, low(codes)); }
  static Bytes lookup_upper(const Table& table, const Bytes& codes) { return lookup(table, high(codes)); }
  static Ints start(const int32_t*) { return zero(); }
  static Ints zero() {
    return each<Ints>([](int) { return 0; });
  }
  static const int8_t* four(const int8_t* x) { return x; }
  static Ints dot(const Ints& sum, const Bytes& level, const int8_t* x) {
    return each<Ints>([&](int i) {
      int32_t total = sum.at[i];
      for (int j = 0; j < 4; j++) total += int8_t(level.at[4 * i + j]) * x[j];
      return total;
    });
  }
  static Ints times(const Ints& a, int32_t factor) {
    return each<Ints>([&](int i) { return a.at[i] * factor; });
  }
  static Ints add(const Ints& a, const Ints& b) {
    return each<Ints>([&](int i) { return a.at[i] + b.at[i]; });
  }
  static Floats add(const Floats& a, const Floats& b) {
    return each<Floats>([&](int i) { return a.at[i] + b.at[i]; });
  }
  static Floats mul(const Floats& a, const Floats& b) {
    return each<Floats>([&](int i) { return a.at[i] * b.at[i]; });
  }
  static Floats fma(const Floats& a, const Floats& b, const Floats& c) {
    return each<Floats>([&](int i) { return std::fmaf(a.at[i], b.at[i], c.at[i]); });
  }
  static Floats floats(const Ints& v) {
    return each<Floats>([&](int i) { return float(v.at[i]); });
  }
  static Floats column(const Bytes& level, int j) {
    return each<Floats>([&](int i) { return float(int8_t(level.at[4 * i + j])); });
  }
  static Floats zero_floats() {
    return each<Floats>([](int) { return 0.0f; });
  }
  static Floats broadcast(const float* from) {
    return each<Floats>([=](int) { return *from; });
  }
  static Floats load_floats(const float* from) {
    return each<Floats>([=](int i) { return from[i]; });
  }
  static void store(float* to, const Floats& v) { std::memcpy(to, v.at, sizeof v.at); }
  static Floats float16(const uint8_t* from) {
    return each<Floats>([=](int i) { return from_float16(uint16_t(from[2 * i] | from[2 * i + 1] << 8)); });
  }
  static Floats e8m0(const uint8_t* from) {
    return each<Floats>([=](int i) { return from_e8m0(from[i]); });
  }
};

}  // namespace

const Kernels kScalar = kernels_of<Scalar>();

}  // namespace potq
