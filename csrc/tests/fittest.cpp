// Self-test of the routines that fit a weight to its grid (search.cpp, candidates.cpp, columns.cpp, straight_through.cpp,
// trellis.cpp) against what potq.h says of them, computed naively in double: every stored scale is tried, every level, every
// path, every column's sum from its beginning.
//
// Prints how many cases there were and a hash of all outputs, which every platform must agree on. Exits with 1 on a mismatch,
// after at most ten of them, each with the parameters of its case. Half of the cases are of numbers so short that float
// arithmetic is exact: there results are equal to the last bit, ties included. The others have a tolerance. Every buffer has
// exactly its size, for AddressSanitizer to see what is beside it, and outputs are NaN (or ones) before the call.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../potq.h"
#include "oracle.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

using Floats = std::vector<float>;
using Bytes = std::vector<uint8_t>;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

int failures = 0, cases = 0;
uint64_t hash = 0;
std::string context;  // what is running, for messages

__attribute__((format(printf, 1, 2))) std::string text(const char* format, ...) {
  char found[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(found, sizeof found, format, arguments);
  va_end(arguments);
  return found;
}

void announce(const std::string& what) { context = what, cases++; }

void fail(const std::string& what) {
  std::printf("FAIL %s\n     %s\n", context.c_str(), what.c_str());
  std::fflush(stdout);
  if (++failures == 10) std::_Exit(1);
}

// Floats made of integers, one call a statement: the same on every platform.
struct Random {
  std::mt19937_64 next;

  int between(int first, int last) { return first + int(next() % uint64_t(last - first + 1)); }
  int of(const std::vector<int>& values) { return values[next() % values.size()]; }
  bool one_in(int n) { return next() % uint64_t(n) == 0; }
  float uniform() { return float(next() >> 40) * 0x1p-24f; }
  float normal() {  // about: bell-shaped, 0.6 wide
    int sum = 0;
    for (int i = 0; i < 4; i++) sum += int(next() >> 43) - (1 << 20);
    return float(sum) * 0x1p-20f;
  }
  float power(int first, int last) { return std::ldexp(1.0f, between(first, last)); }
  float with_exponent(int first, int last) {
    const float mantissa = 1 + uniform(), magnitude = mantissa * power(first, last);
    return one_in(2) ? -magnitude : magnitude;
  }
};

template <class... T>
uint64_t digest(const std::tuple<std::vector<T>...>& outputs) {  // FNV-1a
  uint64_t sum = 0xcbf29ce484222325u;
  const auto add = [&sum](const void* from, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) sum = (sum ^ static_cast<const uint8_t*>(from)[i]) * 0x100000001b3u;
  };
  std::apply([&](const auto&... values) { (add(values.data(), values.size() * sizeof values[0]), ...); }, outputs);
  return sum;
}

// The outputs of run(threads), a tuple of vectors: any number of threads must give the same bits.
template <class Run>
auto run_with_threads(Run run) {
  const auto outputs = run(1);
  const uint64_t expected = digest(outputs);
  for (const int threads : {2, 5})
    if (digest(run(threads)) != expected) fail(text("%d threads give other bits than one", threads));
  hash = (hash ^ expected) * 0x100000001b3u;
  return outputs;
}

// ---- Grids of a weight ---------------------------------------------------------------------------------------------------

const std::vector<int> kLevels = {2, 3, 4, 7, 8, 15, 16, 17, 18, 31, 64, 255, 256};

// A float sum, tracked in double, and the magnitude of its terms.
struct Sum {
  double value, magnitude = std::fabs(value);

  void add(double factor, double by) { value += factor * by, magnitude += std::fabs(factor * by); }
};

// Copies are what is tested: theirs are the vectors without memory to spare.
struct Grid {
  Random random;
  bool exact, shifted;  // exact: short numbers, scales that are powers of two
  int rows, columns, n_levels, width, groups;
  Floats levels, boundaries, edges, scale, shift;
  std::vector<int32_t> group;

  explicit Grid(int number) : random{std::mt19937_64(uint64_t(number))}, exact(random.one_in(2)), shifted(random.one_in(2)) {
    rows = random.of({1, 2, 3, 5, 8, 13}), columns = random.of({1, 2, 3, 7, 14, 31, 63, 64, 65, 100, 127, 128, 129, 150});
    n_levels = kLevels[size_t(number) % kLevels.size()];
    width = random.of({1, 7, columns, 0});  // columns per group, the last perhaps short; 0: every column in any of five
    groups = width ? (columns + width - 1) / width : 5;
    for (int j = 0; j < columns; j++) group.push_back(width ? j / width : random.between(0, 4));
    for (int i = 0; i < n_levels; i++) levels.push_back(exact ? float(i - n_levels / 2) * 0.5f : random.normal() * 4);
    std::sort(levels.begin(), levels.end());
    const bool aside = exact && random.one_in(3);  // boundaries need not be midpoints
    for (size_t i = 0; i + 1 < levels.size(); i++)
      boundaries.push_back((levels[i] + levels[i + 1]) / 2 + (aside ? float(random.between(-1, 1)) * 0.125f : 0));
    const float margin = float(random.between(0, 1)) * 0.5f;
    edges = {levels.front() - margin, levels.back() + margin};
    for (int i = 0; i < rows * groups; i++) {
      const float any = exact ? random.power(-3, 3) : 0.1f + random.uniform();
      scale.push_back(random.one_in(8) ? 0 : random.one_in(4) ? -any : any);
      if (shifted) shift.push_back(exact ? float(random.between(-16, 16)) * 0.25f : random.normal() * 3);
    }
  }

  void announce(const char* what) const {
    ::announce(text("%s: rows=%d columns=%d groups=%d width=%d levels=%d shift=%d exact=%d", what, rows, columns, groups, width,
                    n_levels, shifted, exact));
  }

  potq_columns described() const {
    const float* shifts = shifted ? shift.data() : nullptr;
    return {levels.data(), boundaries.data(), scale.data(), shifts, group.data(), rows, groups, columns, n_levels};
  }

  size_t size() const { return size_t(rows) * size_t(columns); }
  size_t own(size_t at) const { return at / size_t(columns) * size_t(groups) + size_t(group[at % size_t(columns)]); }
  double scale_of(size_t at) const { return scale[own(at)]; }
  double shift_of(size_t at) const { return shifted ? shift[own(at)] : 0; }

  double level(double x) const {
    size_t found = 0;
    for (const float boundary : boundaries) found += x >= boundary;
    return levels[found];
  }
  double quotient(size_t at, double w) const { return scale_of(at) != 0 ? w / scale_of(at) - shift_of(at) : -shift_of(at); }
  double rounded(size_t at, double w) const {
    return scale_of(at) != 0 ? scale_of(at) * (level(quotient(at, w)) + shift_of(at)) : 0;
  }

  // `found` must be what a number rounds to that is `target`, give or take `slack`.
  void check(size_t at, double found, double target, double slack, int dtype = POTQ_FLOAT32) const {
    const double expected = rounded(at, target), s = scale_of(at), z = shift_of(at);
    bool good = found == oracle::rounded_to(dtype, float(expected));
    if (!exact && !good && s != 0) {
      slack += 1e-6 * std::fabs(s) * (std::fmax(-levels.front(), levels.back()) + std::fabs(z));
      if (dtype == POTQ_BFLOAT16) slack += std::fabs(found) * 0x1p-8;
      for (const float each : levels) good |= std::fabs(found - s * (each + z)) <= slack;
      good &= std::fabs(found - target) <= std::fabs(expected - target) + slack;
    }
    if (!good) fail(text("entry %zu: %.9g was rounded to %.9g, expected %.9g", at, target, found, expected));
  }

  void check_close(const char* what, size_t at, double found, const Sum& expected) const {
    if (std::fabs(found - expected.value) <= (exact ? 0 : 1e-5 * expected.magnitude)) return;
    fail(text("%s, entry %zu: found %.9g, expected %.9g", what, at, found, expected.value));
  }

  // On the grid or somewhat beyond it; if not exact, no closer to boundaries and edges than float can tell.
  Floats weights() {
    Floats found(size());
    for (size_t at = 0; at < size();) {
      const double low = levels.front() - 2, high = levels.back() + 2, any = low + (high - low) * random.uniform();
      const double x = exact ? std::floor(any * 8) / 8 : any, s = scale_of(at);
      const auto near = [x](float value) { return std::fabs(x - value) < 1e-4; };
      const bool clear = std::none_of(boundaries.begin(), boundaries.end(), near) && !near(edges[0]) && !near(edges[1]);
      if (exact || clear) found[at] = float((s != 0 ? s : 1) * (x + shift_of(at))), at++;
    }
    return found;
  }

  // columns x columns, the diagonal positive; with exact numbers, nothing beside it
  Floats matrix(bool upper) {
    Floats found(size_t(columns) * size_t(columns));
    for (int i = 0; i < columns * columns; i++) {
      const int row = i / columns, column = i % columns;
      const float on = exact ? random.power(-2, 2) : 0.7f + random.uniform();
      found[size_t(i)] = row == column ? on : exact || (upper && column < row) ? 0 : random.normal() * 0.3f;
    }
    return found;
  }
};

// ---- Columns one after another -------------------------------------------------------------------------------------------

void check_compensate(Grid grid) {
  grid.announce("potq_compensate");
  const potq_columns block = grid.described();
  const Floats before = grid.weights(), factor = grid.matrix(true);
  const auto [weights, values, errors] = run_with_threads([&](int threads) {
    Floats w = before, v(grid.size(), kNan), e(grid.size(), kNan);
    potq_compensate(&block, w.data(), factor.data(), v.data(), e.data(), threads);
    return std::tuple(w, v, e);
  });
  const size_t columns = size_t(grid.columns);
  for (size_t at = 0; at < grid.size(); at++) {
    const size_t j = at % columns, row = at - j;
    Sum own = {before[at]};
    for (size_t i = 0; i < j; i++) own.add(-errors[row + i], factor[i * columns + j]);
    grid.check_close("weights", at, weights[at], own);
    grid.check(at, values[at], weights[at], 1e-6 * own.magnitude);
    grid.check_close("errors", at, errors[at], {(double(weights[at]) - values[at]) / factor[j * columns + j]});
  }
}

void check_descend(Grid grid) {
  grid.announce("potq_descend");
  const potq_columns block = grid.described();
  const Floats hessian = grid.matrix(false);
  Floats before = grid.weights(), start = grid.weights();
  for (size_t at = 0; at < grid.size(); at += 3) before[at] = float(grid.rounded(at, before[at])), start[at] = 0;  // optimal
  const auto [gradient, values, changes] = run_with_threads([&](int threads) {
    Floats g = start, v = before, c(grid.size(), kNan);
    potq_descend(&block, g.data(), hessian.data(), v.data(), c.data(), threads);
    return std::tuple(g, v, c);
  });
  const size_t columns = size_t(grid.columns);
  for (size_t at = 0; at < grid.size(); at++) {
    const size_t j = at % columns, row = at - j;
    const double h = hessian[j * columns + j];
    Sum own = {start[at]};
    for (size_t i = 0; i < j; i++) own.add(changes[row + i], hessian[i * columns + j]);
    grid.check(at, values[at], before[at] - own.value / h, 1e-5 * (std::fabs(before[at]) + own.magnitude / h));
    if (!(changes[at] == values[at] - before[at])) fail(text("changes, entry %zu: %.9g", at, changes[at]));
    for (size_t i = j; i < columns; i++) own.add(changes[row + i], hessian[i * columns + j]);
    grid.check_close("gradient", at, gradient[at], own);
  }
}

// ---- A weight that is learned --------------------------------------------------------------------------------------------

void check_round(Grid grid, int dtype) {
  const bool narrow = dtype == POTQ_BFLOAT16;
  const potq_columns weight = grid.described();
  const Floats latent = grid.weights();
  grid.announce(narrow ? "potq_round, bfloat16" : "potq_round, float32");
  const auto [values] = run_with_threads([&](int threads) {
    Bytes v(grid.size() * (narrow ? 2 : 4), 0xff);  // NaN
    potq_round(&weight, latent.data(), v.data(), narrow, threads);
    return std::tuple(v);
  });
  for (size_t at = 0; at < grid.size(); at++)
    grid.check(at, oracle::load(values.data(), at, dtype), latent[at], 1e-6 * std::fabs(latent[at]), dtype);

  grid.announce(narrow ? "potq_round_backward, bfloat16" : "potq_round_backward, float32");
  Bytes gradient(grid.size() * (narrow ? 2 : 4));
  for (size_t at = 0; at < grid.size(); at++)
    oracle::store(gradient.data(), at, dtype, grid.exact ? float(grid.random.between(-4, 4)) / 2 : grid.random.normal());
  const auto [to_latent, to_scale] = run_with_threads([&](int threads) {
    Floats latent_gradient(grid.size(), kNan), scale_gradient(grid.scale.size(), kNan);
    potq_round_backward(&weight, latent.data(), grid.edges.data(), gradient.data(), narrow, latent_gradient.data(),
                        scale_gradient.data(), threads);
    return std::tuple(latent_gradient, scale_gradient);
  });
  std::vector<Sum> sums(to_scale.size(), {0});
  for (size_t at = 0; at < grid.size(); at++) {
    const double g = oracle::load(gradient.data(), at, dtype), z = grid.shift_of(at), x = grid.quotient(at, latent[at]);
    const bool inside = x >= grid.edges[0] && x <= grid.edges[1];
    if (!(to_latent[at] == (inside ? g : 0))) fail(text("latent gradient %zu: %.9g of %.9g", at, to_latent[at], g));
    if (grid.scale_of(at) == 0) continue;
    sums[grid.own(at)].add(g, grid.level(x) + z);
    if (inside) sums[grid.own(at)].add(-g, x), sums[grid.own(at)].add(-g, z);
  }
  for (size_t i = 0; i < sums.size(); i++) grid.check_close("scale gradient", i, to_scale[i], sums[i]);
}

// ---- Paths through a trellis ---------------------------------------------------------------------------------------------

// Rows whose levels form paths. The path's last bits are b[0], b[1] and b[2], the newest first.
struct Rows {
  using Bits = std::array<int, 3>;
  Random random;
  bool exact;
  int rows, columns, n_levels;
  Floats levels, weights, steps;

  Rows(int number, int most) : random{std::mt19937_64(uint64_t(number))}, exact(random.one_in(2)) {
    rows = random.of({1, 2, 5, 16, 17, 33}), columns = random.between(1, most), n_levels = random.of({8, 16, 32, 256});
    for (int i = 0; i < n_levels; i++) levels.push_back(exact ? float(i - n_levels / 2) * 0.5f : random.normal() * 4);
    std::sort(levels.begin(), levels.end());
    for (size_t at = 0; at < size(); at++) {
      weights.push_back(exact ? float(random.between(-32, 32)) * 0.25f : random.normal() * 8);
      steps.push_back(exact ? random.power(-1, 1) : 0.5f + random.uniform());
    }
  }

  void announce(const char* what) const {
    ::announce(text("%s: rows=%d columns=%d levels=%d exact=%d", what, rows, columns, n_levels, exact));
  }

  size_t size() const { return size_t(rows) * size_t(columns); }
  double error(double weight, size_t at, size_t level) const { return weight - double(steps[at]) * levels[level]; }

  // The level nearest to a weight of those that are open to it if its own bit is `bit`.
  size_t nearest(double weight, size_t at, int bit, const Bits& b) const {
    size_t best = size_t(2 * (bit ^ b[1] ^ b[2]) + b[0]);
    for (size_t i = best; i < levels.size(); i += 4)
      if (std::fabs(error(weight, at, i)) < std::fabs(error(weight, at, best))) best = i;
    return best;
  }

  // The least sum of squares of a row from entry `at` on.
  double least(size_t at, const Bits& b) const {
    double best = std::numeric_limits<double>::infinity();
    for (int bit = 0; bit < 2; bit++) {
      const double own = error(weights[at], at, nearest(weights[at], at, bit, b));
      const bool last = (at + 1) % size_t(columns) == 0;
      best = std::fmin(best, own * own + (last ? 0 : least(at + 1, {bit, b[0], b[1]})));
    }
    return best;
  }

  // Goes on along the path by the number of a level; false: it is not open.
  static bool follow(uint8_t level, Bits& b) {
    const int bit = (level >> 1 & 1) ^ b[1] ^ b[2];
    const bool open = (level & 1) == b[0];
    b = {bit, b[0], b[1]};
    return open;
  }
};

void check_best_paths(int number) {
  const Rows rows(number, 7);
  rows.announce("potq_best_paths");
  const size_t columns = size_t(rows.columns);
  const auto search = [&](int threads, uint8_t* index, float* costs) {
    potq_best_paths(rows.levels.data(), rows.n_levels, rows.weights.data(), rows.steps.data(), rows.rows, rows.columns, index,
                    costs, threads);
  };
  const auto [index, costs] = run_with_threads([&](int threads) {
    Bytes i(rows.size(), 0xff);
    Floats c(size_t(rows.rows), kNan);
    search(threads, i.data(), c.data());
    return std::tuple(i, c);
  });
  Floats alone(costs.size(), kNan);
  search(1, nullptr, alone.data());
  if (alone != costs) fail("costs alone differ");
  for (size_t row = 0; row < costs.size(); row++) {
    const double least = rows.least(row * columns, {}), slack = rows.exact ? 0 : 1e-5 * (least + 0.01);
    Rows::Bits b = {};
    double own = 0;
    for (size_t at = row * columns; at < (row + 1) * columns; at++) {
      if (index[at] >= rows.n_levels || !Rows::follow(index[at], b)) return fail(text("entry %zu leaves the trellis", at));
      own += rows.error(rows.weights[at], at, index[at]) * rows.error(rows.weights[at], at, index[at]);
    }
    if (!(std::fabs(own - least) <= slack) || !(std::fabs(costs[row] - least) <= slack))
      fail(text("row %zu: cost %.9g, of the path %.9g, the least is %.9g", row, costs[row], own, least));
  }
}

// A path on its way, and what it left of the weights to come.
struct Survivor {
  double cost = std::numeric_limits<double>::infinity();
  std::vector<double> left, errors;
  Bytes index;
};

// For every state, b[2] b[1] b[0] as a number, the path that comes to it behind the columns.
std::vector<Survivor> survivors(const Rows& rows, const Floats& factor, size_t row, int start) {
  const size_t columns = size_t(rows.columns);
  std::vector<Survivor> states(8);
  const auto first = rows.weights.begin() + std::ptrdiff_t(row * columns);
  states[size_t(start)] = {0, std::vector<double>(first, first + rows.columns), {}, {}};
  for (size_t t = 0; t < columns; t++) {
    std::vector<Survivor> next(8);
    const float* u = &factor[t * columns];
    for (int state = 0; state < 16; state++) {
      const Survivor& from = states[size_t(state / 2)];
      if (!std::isfinite(from.cost)) continue;
      const Rows::Bits b = {state / 2 & 1, state / 4 & 1, state / 8};
      const size_t at = row * columns + t, level = rows.nearest(from.left[t], at, state % 2, b);
      const double error = rows.error(from.left[t], at, level) / u[t];
      Survivor& to = next[size_t(state % 8)];
      if (from.cost + error * error >= to.cost) continue;
      to = from, to.cost += error * error;
      to.index.push_back(uint8_t(level)), to.errors.push_back(error);
      for (size_t j = t + 1; j < columns; j++) to.left[j] -= error * u[j];
    }
    states.swap(next);
  }
  return states;
}

// Numbers are exact, so that ties are.
void check_compensate_paths(int number) {
  Rows rows(2 * number, 9);
  while (!rows.exact) rows = Rows(rows.random.between(0, 1 << 20), 9);
  rows.announce("potq_compensate_paths");
  const size_t columns = size_t(rows.columns), count = size_t(rows.rows);
  const int kept = rows.random.between(1, rows.columns);
  Floats factor(columns * columns);
  for (size_t i = 0; i < columns; i++) {
    factor[i * columns + i] = rows.random.power(-1, 1);
    for (size_t j = i + 1; j < columns; j++)
      factor[i * columns + j] = factor[i * columns + i] * float(rows.random.between(-1, 1));
  }
  Bytes starts, ends;
  for (size_t row = 0; row < count; row++)
    starts.push_back(uint8_t(rows.random.between(0, 7))), ends.push_back(uint8_t(rows.random.between(0, 7)));
  const bool ended = columns >= 3 && rows.random.one_in(2);  // then every state can be reached
  const potq_path_columns block = {rows.levels.data(), rows.rows, rows.n_levels, rows.columns, kept};
  const auto [states, index, errors] = run_with_threads([&](int threads) {
    Bytes s = starts, i(count * size_t(kept), 0xff);
    Floats e(count * size_t(kept), kNan);
    potq_compensate_paths(&block, rows.weights.data(), rows.steps.data(), factor.data(), ended ? ends.data() : nullptr,
                          s.data(), i.data(), e.data(), threads);
    return std::tuple(s, i, e);
  });
  for (size_t row = 0; row < count; row++) {
    const std::vector<Survivor> found = survivors(rows, factor, row, starts[row]);
    const auto cheaper = [](const Survivor& a, const Survivor& b) { return a.cost < b.cost; };
    const Survivor& best = ended ? found[ends[row]] : *std::min_element(found.begin(), found.end(), cheaper);
    Rows::Bits b = {starts[row] & 1, starts[row] >> 1 & 1, starts[row] >> 2};
    for (size_t t = 0; t < size_t(kept); t++) {
      const size_t at = row * size_t(kept) + t;
      if (index[at] != best.index[t] || errors[at] != float(best.errors[t]))
        return fail(text("row %zu, column %zu: level %d, error %.9g, expected %d and %.9g", row, t, index[at], errors[at],
                         best.index[t], best.errors[t]));
      Rows::follow(index[at], b);
    }
    if (states[row] != (b[2] << 2 | b[1] << 1 | b[0])) fail(text("row %zu ends in state %d", row, states[row]));
  }
}

// ---- The best scale ------------------------------------------------------------------------------------------------------

Floats any_table(Random& random, int count) {
  const int kind = random.between(0, 5);
  std::set<float> found;
  while (int(found.size()) < count) {
    const float whole = float(random.between(-count, count)), normal = random.normal(), any = random.with_exponent(-100, 60);
    const float power = random.power(-count / 2 - 1, count / 2 - 2), signed_power = whole < 0 ? -power : power;
    const float kinds[] = {whole, signed_power, normal, std::fabs(normal) + 0.1f, -std::fabs(normal), any};
    found.insert(kinds[kind]);
  }
  return Floats(found.begin(), found.end());
}

// Weights of one group and their importance: none at all (0), none where weights are not zero (1), or some.
void fill_group(Random& random, float* weights, float* importance, int size) {
  const int kind = random.between(0, 5), counts = random.between(0, 3);
  const int exponent = random.one_in(3) ? random.between(-140, 100) : random.between(-20, 8);
  for (int i = 0; i < size; i++) {
    const float any = random.with_exponent(-149, 126), simple = std::ldexp(float(random.between(-8, 8)), exponent);
    const float usual = std::ldexp(random.normal(), exponent), uniform = random.one_in(4) ? 0 : random.uniform();
    weights[i] = kind == 0 ? 0 : kind == 1 ? any : kind == 2 ? simple : usual;
    const float important[] = {0, weights[i] == 0 ? 1.0f : 0.0f, uniform, std::fabs(random.with_exponent(-60, 100))};
    importance[i] = important[counts];
  }
}

// What is stored, from the last choice to the first: negative scales (none for E8M0, nor where scales have no sign), then zero
// and the positive ones, each by magnitude.
struct Stored {
  const int format;
  const bool has_sign;

  size_t magnitudes() const { return format == POTQ_SCALE_FLOAT16 ? 0x7c00 : 255; }
  size_t count() const { return has_sign ? 2 * magnitudes() : magnitudes(); }
  bool negative(size_t place) const { return has_sign && place < magnitudes(); }
  double magnitude(size_t place) const {
    const size_t key = has_sign ? place % magnitudes() : place;
    return format == POTQ_SCALE_FLOAT16 ? oracle::from_float16(uint16_t(key)) : std::ldexp(1.0, int(key) - 127);
  }
  size_t place(size_t bits) const {
    if (bits & 0x8000 && has_sign) return bits & 0x7fff;
    return has_sign ? bits + magnitudes() : bits;
  }
};

// `found` must have the largest gain of all stored scales (the squared error of zeros less its own, summed to within 1e-14) and
// be the first choice of those whose gains are equal to within 1e-12; zero if none has any.
void check_best(const Floats& levels, const float* w, const float* importance, size_t size, Stored stored, size_t bits) {
  Floats h(size, 1.0f), mirrored(levels.rbegin(), levels.rend());
  for (float& level : mirrored) level = -level;
  for (size_t i = 0; importance && i < size; i++)
    if (w[i] != 0 && importance[i] > 0) h.assign(importance, importance + size);
  const size_t found = stored.place(bits), zero = stored.place(0);
  if (found >= stored.count()) return fail(text("found %zu, which is no finite scale", bits));
  std::vector<double> gains(stored.count()), noise(gains.size()), middle(levels.size() - 1);
  for (size_t key = 0; key < gains.size(); key++) {
    const Floats& own = stored.negative(key) ? mirrored : levels;
    const double s = stored.magnitude(key);
    for (size_t j = 0; j < middle.size(); j++) middle[j] = s * ((double(own[j]) + own[j + 1]) / 2);
    for (size_t i = 0; i < size; i++) {
      const size_t nearest = size_t(std::upper_bound(middle.begin(), middle.end(), double(w[i])) - middle.begin());
      const double value = s * own[nearest], gain = h[i] * (value * (2 * double(w[i]) - value));
      gains[key] += gain;
      noise[key] += std::fabs(gain) * 1e-14;
    }
  }
  const size_t best = size_t(std::max_element(gains.begin(), gains.end()) - gains.begin());
  const double most = gains[best];
  if (most <= noise[best]) {
    if (found != zero && std::fabs(gains[found]) > 2 * noise[found]) fail(text("scale %zu, though none gains", found));
    return;
  }
  if (gains[found] < most * (1 - 2e-12) - noise[found] - noise[best])
    fail(text("scale %zu gains %.17g, %zu gains %.17g", found, gains[found], best, most));
  for (size_t key = found + 1; key < gains.size(); key++)
    if (gains[key] - noise[key] > most * (1 - 0.5e-12)) return fail(text("scale %zu, though %zu is as good", found, key));
}

void check_best_scales(int format, int number, int groups, int size, int n_levels) {
  Random random{std::mt19937_64(uint64_t(number))};
  const bool important = random.one_in(2), wide = format == POTQ_SCALE_FLOAT16, has_sign = wide && number % 8 == 0;
  announce(text("potq_best_scales, %s%s: case=%d groups=%d size=%d levels=%d importance=%d", has_sign ? "signed " : "",
                wide ? "float16" : "E8M0", number, groups, size, n_levels, important));
  const Floats levels = any_table(random, n_levels);
  Floats weights(size_t(groups * size)), importance(weights.size());
  for (int g = 0; g < groups; g++) fill_group(random, &weights[size_t(g * size)], &importance[size_t(g * size)], size);
  const float* counts = important ? importance.data() : nullptr;
  const auto [found] = run_with_threads([&](int threads) {
    Bytes out(size_t(groups * (wide ? 2 : 1)), 0xff);
    if (potq_best_scales(levels.data(), n_levels, weights.data(), counts, groups, size, format, has_sign, out.data(), threads))
      fail("no memory");
    return std::tuple(out);
  });
  const int step = wide ? (groups + 2) / 3 : 1;  // three groups of float16: trying all its scales takes long
  for (int g = groups - 1; g >= 0; g -= step) {
    uint16_t scale = found[size_t(g)];
    if (wide) std::memcpy(&scale, &found[size_t(g) * 2], 2);
    check_best(levels, &weights[size_t(g * size)], counts ? counts + g * size : nullptr, size_t(size), {format, has_sign},
               scale);
  }
}

void check_all_best_scales() {
  Random random;
  for (int number = 0; number < 400; number++) {
    const int groups = random.between(1, 3), n_levels = random.of(kLevels);
    const int size = random.of({1, 2, 3, 4, 7, 8, 9, 12, 15, 16, 17, 31, 33});
    if (number % 4 == 0) check_best_scales(POTQ_SCALE_FLOAT16, number, groups, size, n_levels);
    check_best_scales(POTQ_SCALE_E8M0, number, groups, size, n_levels);
  }
  for (const int size : {64, 129, 300, 511, 512, 513, 1030}) check_best_scales(POTQ_SCALE_E8M0, size, 9, size, 16);
  for (const int size : {64, 300, 800}) check_best_scales(POTQ_SCALE_FLOAT16, size, 3, size, 8);
  for (const int n_levels : {2, 15, 256}) {  // enough weights for more than one thread
    check_best_scales(POTQ_SCALE_FLOAT16, n_levels, 1100, 8, n_levels);
    check_best_scales(POTQ_SCALE_E8M0, n_levels, 1100, 8, n_levels);
  }
}

// ---- The best of some scales ---------------------------------------------------------------------------------------------

// Ascending; if exact, small integers, with or without gaps.
Floats ascending(Random& random, int count, bool exact) {
  Floats found;
  const int gap = random.between(1, 3);
  int level = -count * (gap + 1) / 4;
  for (int i = 0; i < count; i++) found.push_back(exact ? float(level += random.between(1, gap)) : random.normal() * 100);
  std::sort(found.begin(), found.end());
  return found;
}

// A group's squared error under a scale, and how far float arithmetic may be from it.
std::pair<double, double> error_under(const Floats& levels, const Floats& boundaries, double reference, const float* w,
                                      const float* importance, size_t size, double s) {
  double sum = 0, noise = 0;
  for (size_t i = 0; i < size; i++) {
    const double x = s != 0 ? w[i] / s * reference : 0, h = importance ? importance[i] : 1;
    const auto at = std::upper_bound(boundaries.begin(), boundaries.end(), x) - boundaries.begin();
    const double error = s != 0 ? w[i] - s * double(levels[size_t(at)]) / reference : w[i], slack = 5e-7 * std::fabs(w[i]);
    sum += h * error * error;
    noise += h * (1e-6 * error * error + slack * (2 * std::fabs(error) + slack));
  }
  return {sum, noise};
}

void check_best_candidates(int number) {
  Random random{std::mt19937_64(uint64_t(number))};
  const bool exact = random.one_in(2), important = random.one_in(2);
  const int groups = random.between(1, 7), candidates = random.between(1, 17), n_levels = random.of(kLevels);
  const size_t size = size_t(random.of({1, 2, 3, 32, 63, 64, 65, 128, 130, 300})), weight_count = size_t(groups) * size;
  announce(text("potq_best_candidates: case=%d groups=%d size=%zu levels=%d candidates=%d importance=%d exact=%d", number,
                groups, size, n_levels, candidates, important, exact));
  const float reference = random.power(0, 7);
  const Floats levels = ascending(random, n_levels, exact);
  Floats boundaries, weights, importance, scales;
  for (size_t i = 1; i < levels.size(); i++) boundaries.push_back((levels[i - 1] + levels[i]) / 2);
  for (size_t i = 0; i < weight_count; i++) {
    weights.push_back(exact ? float(random.between(-64, 64)) * 0.25f : random.normal() * 9);
    importance.push_back(exact ? float(random.between(0, 4)) : random.uniform());
  }
  for (int i = 0; i < groups * candidates; i++) {
    const float any = exact ? random.power(-1, 4) : 0.5f + random.uniform() * 9;
    scales.push_back(random.one_in(8) ? 0 : random.one_in(4) ? -any : any);
  }
  const float* counts = important ? importance.data() : nullptr;
  const auto [best] = run_with_threads([&](int threads) {
    std::vector<int64_t> out(size_t(groups), -1);
    potq_best_candidates(levels.data(), boundaries.data(), n_levels, reference, weights.data(), counts, groups, int64_t(size),
                         scales.data(), candidates, out.data(), threads);
    return std::tuple(out);
  });
  for (size_t g = 0; g < best.size(); g++) {
    if (best[g] < 0 || best[g] >= candidates) return fail(text("group %zu: position %lld", g, static_cast<long long>(best[g])));
    const auto under = [&](int64_t c) {
      const float* own = counts ? counts + g * size : nullptr;
      return error_under(levels, boundaries, reference, &weights[g * size], own, size,
                         scales[g * size_t(candidates) + size_t(c)]);
    };
    const auto [error, noise] = under(best[g]);
    for (int64_t c = 0; c < candidates; c++) {
      const auto [other, more] = under(c);
      const bool better = exact ? (c < best[g] ? other <= error : other < error) : other + more < error - noise;
      if (better) fail(text("group %zu: error %.9g, candidate %d has %.9g", g, error, int(c), other));
    }
  }
}

}  // namespace

int main() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_set_death_callback([] { std::printf("FAIL %s\n", context.c_str()), std::fflush(stdout); });
#endif
  for (int number = 0; number < 390; number++) {
    const Grid grid(number);
    check_compensate(grid);
    check_descend(grid);
    check_round(grid, POTQ_FLOAT32);
    check_round(grid, POTQ_BFLOAT16);
  }
  for (int number = 0; number < 300; number++) {
    check_best_paths(number);
    check_compensate_paths(number);
  }
  check_all_best_scales();
  for (int number = 0; number < 400; number++) check_best_candidates(number);
  std::printf("fitting     %d cases  hash %016llx\n", cases, static_cast<unsigned long long>(hash));
  if (failures) std::printf("%d failures\n", failures);
  return failures ? 1 : 0;
}
