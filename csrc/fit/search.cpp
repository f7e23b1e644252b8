// The best scale of every group: of all stored scales, the one of least squared error.
//
// E(s) = sum h (w - s l)^2 over a group, l being the level nearest to w / s. While s falls, a weight crosses the midpoint t of
// two neighbouring levels of its own sign at s = w / t and moves from the inner level to the outer. Between crossings
// E(s) = a - 2 b s + c s^2 with a = sum h w^2, b = sum h w l, c = sum h l^2: a crossing changes b and c alone. The parabola Q
// of a piece is the error of one assignment of levels at any s, so Q >= E everywhere, with equality on the piece itself. Hence
//     min E(s) over stored scales = min over pieces of Q at the stored scales just below and above its vertex b / c,
// and a vertex need not lie on its own piece.
//
// float16 has 31743 positive values. What a crossing adds to b and c is booked at the largest of them that is not above w / t
// (found exactly), so that the pieces between two stored scales, which no stored scale sees, are skipped; running sums of the
// books from the largest scale down give b and c. It is a counting sort: linear, in memory that does not grow with the group,
// which may be a whole tensor. Only a window of scales is looked at, beyond which these bounds exceed an error that was found:
//   below  the errors of weights beyond the outermost level, which grow as s falls
//   above  the errors of weights that keep the innermost level, which do not fall as s grows
// Integer grids have an octave and a half between the bounds; under PoT grids, which are much the same an octave on, it is six.
// E8M0 has one value an octave: there E is summed directly, within the same bounds.
//
// A negative scale is a positive one under the table's mirror image: where scales have a sign, both are searched.
//
// Rejected: sorting the breakpoints w / t themselves. It takes longer than all of the above and memory for every breakpoint.
// The torch reference (scale_search.py) does it, so that each checks the other. Also rejected: E at each of the 1024 stored
// scales of an octave, which needs no vertices, but a group of 64 weights has no more than some hundred pieces.
//
// The sums are of gains, a - E(s), which is positive where a scale is better than none. Gains that differ by less than 1e-12 of
// themselves are equal (the sums are good to some 1e-15): the largest scale is taken. If no scale has a gain, it is zero, or
// the least E8M0 scale.
#include <cfloat>
#include <cmath>
#include <cstdlib>

#include "../numbers.h"
#include "../potq.h"

namespace potq {
namespace {

constexpr int kMaxLevels = 256;
constexpr int kLanes = 16;   // weights at a time
constexpr int kSums = 8;     // sums over every eighth weight, added up at last
constexpr int kBlock = 512;  // weights that are read at once
constexpr int kLargest16 = 0x7bff, kLargestE8m0 = 254;
constexpr int kStride = 256;                 // float16 scales between two tries of a bound: a quarter of an octave
constexpr double kUsual = 0.9;               // the best scale is often near this multiple of the largest weight's
constexpr double kEqual = 1e-12;             // of a gain
constexpr int64_t kSerialWeights = 1 << 13;  // below which a second thread costs more than it saves

inline int smaller(int a, int b) { return a < b ? a : b; }
inline int clamp(int value, int least, int largest) { return value < least ? least : smaller(value, largest); }

// The least float that is not below `value`: floats are >= one exactly when they are >= the other.
inline float rounded_up(double value) {
  if (value > FLT_MAX) return INFINITY;
  if (value < -FLT_MAX) return -FLT_MAX;
  const float nearest = float(value);
  if (double(nearest) >= value) return nearest;
  return float_of(nearest < 0 ? bits_of(nearest) - 1 : bits_of(nearest) + 1);
}

inline double total(const double* sums) {
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

struct Book {
  double b, c;
};

// The level table: what does not depend on weights.
struct Table {
  int cuts;  // midpoints, one less than levels
  double level[kMaxLevels], middle[kMaxLevels];
  double inverse[kMaxLevels];         // of the midpoint's magnitude, a hair too large: see key16
  Book step[kMaxLevels];              // what b / (h w) and c / h gain when a weight crosses outwards
  double above, below;                // levels of weights just above and below zero
  double above_until, below_until;    // up to which quotient they keep it, with an error that does not fall as s grows
  double largest, lowest, magnitude;  // level; the magnitude is the larger of the two

  Table(const float* levels, int count) : cuts(count - 1) {
    for (int j = 0; j < count; j++) level[j] = levels[j];
    int first = 0, last = 0;  // midpoints below zero, and not above it
    for (int j = 0; j < cuts; j++) {
      middle[j] = (level[j] + level[j + 1]) / 2;
      inverse[j] = (1 + 0x1p-45) / std::fabs(middle[j]);
      const double sign = middle[j] < 0 ? -1 : 1;
      step[j] = {sign * (level[j + 1] - level[j]), sign * (level[j + 1] * level[j + 1] - level[j] * level[j])};
      first += middle[j] < 0;
      last += middle[j] <= 0;
    }
    above = level[last], below = level[first];
    above_until = above > 0 ? above : last < cuts ? middle[last] : HUGE_VAL;
    below_until = below < 0 ? below : first > 0 ? middle[first - 1] : -HUGE_VAL;
    largest = level[cuts], lowest = level[0];
    magnitude = std::fmax(std::fabs(largest), std::fabs(lowest));
  }
};

// The midpoints times a scale. Those before `first` are below all weights of at most a magnitude, those from `last` on above.
struct Cuts {
  int first = 0, last = 0;
  float at[kMaxLevels];

  Cuts(const Table& table, double s, double peak) {
    for (int j = 0; j < table.cuts; j++) {
      at[j] = rounded_up(s * table.middle[j]);
      first += at[j] <= -peak;
      last += at[j] <= peak;
    }
  }
};

// Positions of the levels nearest to kLanes weights at one scale. The vectors are spelled out, every one's 16 bytes: left to
// themselves, compilers take vectors of cuts, which is slower.
struct Positions {
  typedef float Floats __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
  int32_t at[kLanes];

  Positions(const float* w, const Cuts& cuts) {
    for (int i = 0; i < kLanes; i += 8) {
      Floats low, high;
      std::memcpy(&low, w + i, 16);
      std::memcpy(&high, w + i + 4, 16);
      Ints low_at = Ints{} + cuts.first, high_at = low_at;
      for (int j = cuts.first; j < cuts.last; j++) low_at -= low >= cuts.at[j], high_at -= high >= cuts.at[j];
      std::memcpy(at + i, &low_at, 16);
      std::memcpy(at + i + 4, &high_at, 16);
    }
  }
};

// Some weights of a group and how much their errors count, padded to whole lanes by zeros that do not count.
struct Block {
  int64_t first = -1;
  int size;  // padded
  float narrow[kBlock];
  double w[kBlock], h[kBlock];

  void load(const float* weights, const float* importance, int64_t start, int count) {
    first = start, size = (count + kLanes - 1) / kLanes * kLanes;
    for (int i = 0; i < count; i++) w[i] = narrow[i] = weights[start + i];
    for (int i = 0; i < count; i++) h[i] = importance ? importance[start + i] : 1;
    for (int i = count; i < size; i++) w[i] = narrow[i] = 0, h[i] = 0;
  }
};

// One group: weights and their importance (null: all 1). `block` is memory to work in, which a short group is read into once.
struct Group {
  const Table& table;
  const float *weights, *importance;
  const int64_t size;
  Block& block;
  double energy, peak;  // a, and the largest magnitude

  Group(const Table& table, const float* weights, const float* importance, int64_t size, Block& block)
      : table(table), weights(weights), importance(importance), size(size), block(block) {
    block.first = -1;
    energy = sum([](double w) { return w * w; });
    peak = largest();
  }

  // visit(block) for all weights, block by block
  template <class Visit>
  void each(Visit visit) const {
    for (int64_t first = 0; first < size; first += kBlock) {
      const int count = size - first < kBlock ? int(size - first) : kBlock;
      if (block.first != first) block.load(weights, importance, first, count);
      visit(block);
    }
  }

  // The sum of h value(w), in an order that no vector width changes.
  template <class Value>
  double sum(Value value) const {
    double sums[kSums] = {};
    each([&](const Block& block) {
      double own[kSums] = {};
      for (int first = 0; first < block.size; first += kSums) {
        for (int i = 0; i < kSums; i++) own[i] += block.h[first + i] * value(block.w[first + i]);
      }
      for (int i = 0; i < kSums; i++) sums[i] += own[i];
    });
    return total(sums);
  }

  double largest() const {
    double found[kSums] = {};
    each([&](const Block& block) {
      for (int first = 0; first < block.size; first += kSums) {
        for (int i = 0; i < kSums; i++) {
          const double magnitude = std::fabs(block.w[first + i]);
          found[i] = magnitude > found[i] ? magnitude : found[i];
        }
      }
    });
    for (const double other : found) found[0] = other > found[0] ? other : found[0];
    return found[0];
  }

  // a - E(s), good to a few units in its last place
  double gain(double s) const {
    const Cuts cuts(table, s, peak);
    double values[kMaxLevels], sums[kSums] = {};
    for (int j = 0; j <= table.cuts; j++) values[j] = s * table.level[j];
    each([&](const Block& block) {
      double own[kSums] = {};
      for (int first = 0; first < block.size; first += kLanes) {
        const Positions nearest(block.narrow + first, cuts);
        double value[kLanes];
        for (int i = 0; i < kLanes; i++) value[i] = values[nearest.at[i]];
        for (int i = 0; i < kLanes; i++) {
          own[i % kSums] += block.h[first + i] * (value[i] * (2 * block.w[first + i] - value[i]));
        }
      }
      for (int i = 0; i < kSums; i++) sums[i] += own[i];
    });
    return total(sums);
  }

  // What weights beyond the outermost levels alone contribute to E(s): no less at smaller scales.
  double clipped(double s) const {
    const double high = table.largest > 0 ? s * table.largest : HUGE_VAL;
    const double low = table.lowest < 0 ? s * table.lowest : -HUGE_VAL;
    return sum([=](double w) {
      const double over = w - high, under = low - w, beyond = over > under ? over : under, error = beyond > 0 ? beyond : 0;
      return error * error;
    });
  }

  // What weights at the innermost levels alone contribute to E(s): no less at larger scales.
  double lost(double s) const {
    const double above = s * table.above, below = s * table.below;
    const double until = s * table.above_until, from = s * table.below_until;
    return sum([=](double w) {
      const double full = w - (w < 0 ? below : above), error = (w > from) & (w < until) ? full : 0;
      return error * error;
    });
  }
};

inline double scale16(int key) { return from_float16(uint16_t(key)); }
inline double scale_e8m0(int key) { return from_e8m0(uint8_t(key)); }

// The largest float16 value (its bits) that is not above q. A weight and a scale times a midpoint that are not equal differ by
// more than the 2^-45 that a quotient by Table::inverse is too large.
inline int key16(double q) {
  if (q < 0x1p-14) return int(q * 0x1p24);
  if (q >= 65504) return kLargest16;
  uint64_t bits;
  std::memcpy(&bits, &q, 8);
  return int(bits >> 42) - ((1023 - 15) << 10);
}

// An error that exceeds this is no candidate, once a scale of this gain is known.
inline double limit_of(double gain, double energy) { return energy - (gain > 0 ? gain : 0) + 2 * kEqual * energy; }

// Working memory of a search: what a crossing adds to b and c, by the scale where it happens, and which scales have any. All
// zero between searches.
struct Books {
  Book at[kLargest16 + 1];
  uint64_t used[kLargest16 / 64 + 1];

  void open(int key) { used[key / 64] |= uint64_t(1) << key % 64; }

  // visit(key, book) for the open books from key `high` down to `low`
  template <class Visit>
  void each(int low, int high, Visit visit) {
    for (int word = high / 64; word >= low / 64; word--) {
      for (uint64_t left = used[word]; left;) {
        const int bit = 63 - __builtin_clzll(left), key = word * 64 + bit;
        left ^= uint64_t(1) << bit;
        visit(at[key]);
      }
    }
  }
};

class Search16 {
 public:
  Search16(const Group& group, Books& books) : group_(group), table_(group.table), books_(books) {}

  int run() {
    choose_window();
    book_crossings();
    return best();
  }

 private:
  void choose_window() {
    low_ = high_ = clamp(key16(kUsual * group_.peak / table_.magnitude), 1, kLargest16);
    const double limit = limit_of(group_.gain(scale16(low_)), group_.energy);
    while (low_ > 1 && group_.clipped(scale16(low_)) <= limit) low_ = low_ > kStride ? low_ - kStride : 1;
    while (high_ < kLargest16 && group_.lost(scale16(high_)) <= limit) high_ = smaller(high_ + kStride, kLargest16);
  }

  void book_crossings() {
    const Cuts above(table_, scale16(high_), group_.peak), below(table_, scale16(low_), group_.peak);
    Book start = {0, 0};
    group_.each([&](const Block& block) {
      for (int first = 0; first < block.size; first += kLanes) {
        const Positions before(block.narrow + first, above), after(block.narrow + first, below);
        for (int i = 0; i < kLanes; i++) {
          const double w = block.w[first + i], h = block.h[first + i], level = table_.level[before.at[i]];
          start.b += h * w * level;
          start.c += h * (level * level);
          book(w, h, before.at[i], after.at[i]);
        }
      }
    });
    books_.at[high_].b += start.b;
    books_.at[high_].c += start.c;
    books_.open(high_);
  }

  void book(double w, double h, int before, int after) {
    const double magnitude = std::fabs(w), hw = h * w;
    const int first = smaller(before, after), last = before + after - first;
    for (int j = first; j < last; j++) {
      const int key = clamp(key16(magnitude * table_.inverse[j]), low_, high_);
      books_.at[key].b += hw * table_.step[j].b;
      books_.at[key].c += h * table_.step[j].c;
      books_.open(key);
    }
  }

  // The best gain of a piece is b^2 / c, at the vertex b / c.
  int best() {
    Book sum = {0, 0};
    double most = 0;
    books_.each(low_, high_, [&](Book& book) {
      book = sum = {sum.b + book.b, sum.c + book.c};
      if (sum.b > 0 && sum.b * sum.b > most * sum.c) {
        neighbours(sum, [&](int, double gain) { most = gain > most ? gain : most; });
      }
    });
    const double enough = most * (1 - kEqual);
    int found = 0;
    books_.each(low_, high_, [&](Book& book) {  // the largest that is good enough, and all books closed again
      if (book.b > 0 && book.b * book.b >= enough * book.c) {
        neighbours(book, [&](int key, double gain) { found = gain > 0 && gain >= enough && key > found ? key : found; });
      }
      book = {0, 0};
    });
    for (int word = low_ / 64; word <= high_ / 64; word++) books_.used[word] = 0;
    return found;
  }

  // visit(scale, gain) for the two scales around the vertex
  template <class Visit>
  static void neighbours(const Book& book, Visit visit) {
    const int below = key16(book.b / book.c);
    for (int key = below; key <= below + 1 && key <= kLargest16; key++) {
      const double s = scale16(key);
      visit(key, s * (2 * book.b - s * book.c));
    }
  }

  const Group& group_;
  const Table& table_;
  Books& books_;
  int low_ = 1, high_ = kLargest16;
};

int search_e8m0(const Group& group) {
  double gains[kLargestE8m0 + 1], most = 0;
  int low = clamp(int(bits_of(float(std::fmin(group.peak / group.table.magnitude, FLT_MAX))) >> 23), 0, kLargestE8m0),
      high = low;
  const auto look = [&](int key) {
    gains[key] = group.gain(scale_e8m0(key));
    most = gains[key] > most ? gains[key] : most;
  };
  look(low);
  while (low > 0 && group.clipped(scale_e8m0(low - 1)) <= limit_of(most, group.energy)) look(--low);
  while (high < kLargestE8m0 && group.lost(scale_e8m0(high + 1)) <= limit_of(most, group.energy)) look(++high);
  while (high >= low && (gains[high] <= 0 || gains[high] < most * (1 - kEqual))) high--;
  return high >= low ? high : 0;
}

// The levels of negative scales, which turn the table around.
void mirror(const float* levels, int count, float* out) {
  for (int j = 0; j < count; j++) out[j] = -levels[count - 1 - j];
}

// The best scale's bits; `books` is null for E8M0, which needs none.
int search(const Group& group, Books* books) {
  if (group.energy > 0) return books ? Search16(group, *books).run() : search_e8m0(group);
  return group.importance ? search({group.table, group.weights, nullptr, group.size, group.block}, books) : 0;
}

// The better one of the best positive scale and the best negative one, `up` and `down` being one group under the table and
// under its mirror image. Of equally good ones it is the positive.
int search_signed(const Group& up, const Group& down, Books& books) {
  if (!(up.energy > 0)) {
    if (!up.importance) return 0;
    return search_signed({up.table, up.weights, nullptr, up.size, up.block},
                         {down.table, down.weights, nullptr, down.size, down.block}, books);
  }
  const int positive = Search16(up, books).run(), negative = Search16(down, books).run();
  const double above = positive ? up.gain(scale16(positive)) : 0, below = negative ? down.gain(scale16(negative)) : 0;
  return below * (1 - kEqual) > above ? negative | 0x8000 : positive;
}

}  // namespace
}  // namespace potq

int32_t potq_best_scales(const float* levels, int32_t n_levels, const float* weights, const float* importance, int64_t groups,
                         int64_t size, int32_t scale_format, int32_t signed_scales, void* out, int32_t threads) {
  using namespace potq;
  float mirrored[kMaxLevels];
  mirror(levels, n_levels, mirrored);
  const Table table(levels, n_levels), opposite(mirrored, n_levels);
  const bool wide = scale_format == POTQ_SCALE_FLOAT16;
  int32_t failed = 0;
  const int team = groups * size < kSerialWeights ? 1 : threads;
#pragma omp parallel num_threads(team)
  {
    Books* books = wide ? static_cast<Books*>(std::calloc(1, sizeof(Books))) : nullptr;
    Block block;
    const bool ready = books || !wide;
    if (!ready) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic, 16)
    for (int64_t g = 0; g < groups; g++) {
      if (!ready) continue;
      const float* own = importance ? importance + g * size : nullptr;
      const Group group(table, weights + g * size, own, size, block);
      const int best = signed_scales && wide ? search_signed(group, {opposite, weights + g * size, own, size, block}, *books)
                                             : search(group, books);
      if (wide) {
        static_cast<uint16_t*>(out)[g] = uint16_t(best);
      } else {
        static_cast<uint8_t*>(out)[g] = uint8_t(best);
      }
    }
    std::free(books);
  }
  return failed;
}
