// Self-test of the kernels against oracle.h: every usable instruction set, bit for bit.
//
//   selftest [--full] [--isa NAME] [--case N] [--list]
//
// Prints, per instruction set, how many products were checked and a hash of every output; the same program on another
// architecture must print the same numbers. Exits with 1 on a mismatch, after at most ten of them, each with all parameters of
// its case (--case N, with --full where it was given, repeats it alone), and with 2 on a wrong command line.
//
// Inputs come from integers alone (splitmix64), so that every platform tests the same numbers. Every buffer is exactly sized,
// ends at a page that cannot be touched, and is read-only while the kernels only read it: a stray access ends the program with
// the case's name. On a busy machine set OMP_WAIT_POLICY=passive: most of the time goes into threads that wait for each other.

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../potq.h"
#include "oracle.h"
#include "splitmix.h"

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define NO_ASAN __attribute__((no_sanitize_address))
#else
#define ASAN_POISON_MEMORY_REGION(from, bytes) (void)0
#define ASAN_UNPOISON_MEMORY_REGION(from, bytes) (void)0
#define NO_ASAN
#endif

namespace {

constexpr int kArithmetics[] = {POTQ_INT8, POTQ_FLOAT};
constexpr int kRowBlock = 16;  // rows of a block, says potq.h

// ---- Failures ----------------------------------------------------------------------------------------------------------

constexpr int kMaxFailures = 10;
int failures = 0;
std::string context;  // what is running, for messages

__attribute__((format(printf, 1, 2))) void fail(const char* format, ...) {
  std::printf("FAIL %s\n     ", context.c_str());
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf("\n");
  if (++failures < kMaxFailures) return;
  std::printf("%d failures: stopped\n", failures);
  std::fflush(stdout);
  std::_Exit(1);
}

[[noreturn]] void give_up(const char* message) {
  std::fprintf(stderr, "selftest: %s\n", message);
  std::exit(2);
}

// ---- Random numbers ------------------------------------------------------------------------------------------------------

class Random : public SplitMix {
 public:
  using SplitMix::SplitMix;

  int below(int limit) { return int(next() % uint64_t(limit)); }
  int between(int first, int last) { return first + below(last - first + 1); }
  bool one_in(int n) { return below(n) == 0; }
  float sign() { return one_in(2) ? -1.0f : 1.0f; }

  // Bell-shaped, about 0.6 wide; a sum of integers, since a sum of floats may be contracted on some platform.
  float normal() {
    int sum = 0;
    for (int i = 0; i < 4; i++) sum += int(next() >> 43) - (1 << 20);
    return float(sum) * 0x1p-20f;
  }

  // A random mantissa and sign with an exponent in first..last.
  float with_exponent(int first, int last) {
    const float mantissa = float((1 << 23) + int(next() >> 41));
    return sign() * std::ldexp(mantissa, between(first, last) - 23);
  }

  template <typename T>
  T pick(const std::vector<T>& values) {
    return values[size_t(below(int(values.size())))];
  }
};

// ---- Buffers -------------------------------------------------------------------------------------------------------------

// Exactly `bytes` bytes that end (but for the alignment) where a forbidden page begins, with canaries on both sides.
class Buffer {
 public:
  Buffer(const char* name, size_t bytes, size_t alignment) : name_(name), bytes_(bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t open = (bytes + alignment + kCanary + page - 1) / page * page;
    mapped_ = open + 2 * page;
    void* mapping = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) give_up("no memory");
    base_ = static_cast<uint8_t*>(mapping);
    open_ = base_ + page;
    end_ = open_ + open;
    data_ = end_ - (bytes + alignment - 1) / alignment * alignment;
    protect(PROT_READ | PROT_WRITE);
    std::memset(data_ - kCanary, kCanaryByte, kCanary);
    std::memset(data_ + bytes, kCanaryByte, size_t(end_ - data_) - bytes);
    ASAN_POISON_MEMORY_REGION(open_, size_t(data_ - open_));
    ASAN_POISON_MEMORY_REGION(data_ + bytes_, size_t(end_ - data_) - bytes_);
    live().push_back(this);
  }

  Buffer(const char* name, const std::vector<uint8_t>& content, size_t alignment) : Buffer(name, content.size(), alignment) {
    if (bytes_) std::memcpy(data_, content.data(), bytes_);
    freeze();
  }

  ~Buffer() {
    check();
    live().erase(std::find(live().begin(), live().end(), this));
    ASAN_UNPOISON_MEMORY_REGION(open_, size_t(end_ - open_));
    munmap(base_, mapped_);
  }

  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  void fill(int byte) { std::memset(data_, byte, bytes_); }
  void freeze() { protect(PROT_READ); }

  void check() const {
    if (!intact()) fail("wrote beside the buffer '%s' of %zu bytes", name_, bytes_);
  }

  // Name and offset of the buffer that holds or neighbours an address, for the fault handler.
  static const Buffer* around(const void* address) {
    const auto* at = static_cast<const uint8_t*>(address);
    for (const Buffer* buffer : live()) {
      if (at >= buffer->base_ && at < buffer->base_ + buffer->mapped_) return buffer;
    }
    return nullptr;
  }
  const char* name() const { return name_; }

 private:
  static constexpr size_t kCanary = 128;
  static constexpr uint8_t kCanaryByte = 0xc5;

  static std::vector<const Buffer*>& live() {
    static std::vector<const Buffer*> buffers;
    return buffers;
  }

  void protect(int mode) {
    if (mprotect(open_, size_t(end_ - open_), mode)) give_up("mprotect failed");
  }

  NO_ASAN bool intact() const {
    for (const uint8_t* at = data_ - kCanary; at < data_; at++) {
      if (*at != kCanaryByte) return false;
    }
    for (const uint8_t* at = data_ + bytes_; at < end_; at++) {
      if (*at != kCanaryByte) return false;
    }
    return true;
  }

  const char* name_;
  size_t bytes_, mapped_;
  uint8_t *base_, *open_, *end_, *data_;
};

struct sigaction previous_action[NSIG];

// Names the case that crashed. Not async-signal-safe, and need not be: the program ends here.
void on_fault(int signal, siginfo_t* info, void*) {
  const Buffer* buffer = Buffer::around(info->si_addr);
  std::printf("FAIL %s\n     %s", context.c_str(), strsignal(signal));
  if (buffer) {
    const auto offset = static_cast<const uint8_t*>(info->si_addr) - buffer->data();
    std::printf(" at byte %td of '%s', which has %zu", offset, buffer->name(), buffer->bytes());
  }
  std::printf("\n");
  std::fflush(stdout);
  if (previous_action[signal].sa_handler == SIG_DFL) std::_Exit(1);
  sigaction(signal, &previous_action[signal], nullptr);  // a sanitizer's handler: the access faults again and it reports
}

void name_case() {
  std::printf("FAIL %s\n", context.c_str());
  std::fflush(stdout);
}

void catch_faults() {
#ifdef WITH_ASAN
  __sanitizer_set_death_callback(name_case);  // reports that are no signals
#else
  (void)name_case;
#endif
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE}) sigaction(signal, &action, &previous_action[signal]);
}

// ---- What a case is ------------------------------------------------------------------------------------------------------

struct Table {
  const char* name;
  int bits, reference_log2;
  std::vector<int> levels;  // of every code, or with a trellis ascending; empty at 8 bits
  bool trellis = false;
};

std::vector<int> sign_magnitude(std::vector<int> magnitudes) {
  const size_t half = magnitudes.size();
  for (size_t i = 0; i < half; i++) magnitudes.push_back(-magnitudes[i]);
  return magnitudes;
}

const std::vector<Table>& tables() {
  static const std::vector<Table> all = {
      {"pot4", 4, 6, sign_magnitude({0, 1, 2, 4, 8, 16, 32, 64})},
      {"apot4", 4, 5, sign_magnitude({2, 7, 12, 18, 24, 31, 40, 56})},
      {"e2m1", 4, 3, sign_magnitude({0, 1, 2, 3, 4, 6, 8, 12})},
      {"int4", 4, 3, {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1}},
      {"wide4", 4, 7, {-128, 127, -127, 126, 1, -1, 0, 64, -64, 2, -2, 100, -100, 3, 5, -128}},
      {"pot3", 3, 2, sign_magnitude({0, 1, 2, 4})},
      {"pot3x4", 3, 4, sign_magnitude({1, 4, 8, 16})},
      {"int3", 3, 2, {0, 1, 2, 3, -4, -3, -2, -1}},
      {"wide3", 3, 7, {127, -128, -127, 0, 1, -1, 126, 64}},
      {"pot2", 2, 2, sign_magnitude({1, 4})},
      {"int2", 2, 1, {0, 1, -2, -1}},
      {"ternary", 2, 0, sign_magnitude({0, 1})},
      {"wide2", 2, 7, {127, -128, -127, 1}},
      {"int8", 8, 7, {}},
      {"pot2t", 2, 3, {-8, -4, -2, -1, 1, 2, 4, 8}, true},
      {"int2t", 2, 2, {-7, -5, -3, -1, 1, 3, 5, 7}, true},
      {"wide2t", 2, 7, {-128, -127, -64, -1, 0, 1, 126, 127}, true},
      {"apot3t", 3, 5, {-63, -48, -36, -28, -20, -14, -8, -3, 3, 8, 14, 20, 28, 36, 48, 63}, true},
      {"wide3t", 3, 7, {-128, -127, -126, -64, -32, -16, -8, 0, 1, 2, 4, 8, 16, 64, 126, 127}, true},
  };
  return all;
}

enum Parameter { kTable, kGroup, kRows, kColumns, kM, kDtype, kBias, kScaleFormat, kScaleRows, kFillX, kFillW, kFillScale };
constexpr int kParameters = kFillScale + 1;

// Values of kGroup beside columns per scale: one group, said in three ways.
enum Group { kGroupColumns = 0, kGroupBeyond = -1, kGroupLargest = -2 };
enum FillX {
  kNormal,
  kZero,
  kSomeZeroBlocks,
  kOneHuge,
  kExtreme,  // +-127 once rounded, in every column
  kTies,     // n + 1/2 once scaled
  kEdge,     // mean square of the integers at the limit of finer rounding, some remainders at +-1/2
  kNan,
  kInfinity,
  kSubnormal,
  kThreshold,  // largest of a block at 2^-120 or next to it
  kTiny,       // above 2^-120, but scales underflow
  kHuge,
  kWide,  // all exponents
  kAnyBits,
  kFillsX
};
enum FillW { kRandomCodes, kLargestLevel, kLeastLevel, kAlternating, kMatched, kFillsW };  // kMatched: signs of kExtreme's
enum FillScale { kUsual, kEdges, kZeros, kFillsScale };

const char* const kNamesX[] = {"normal",       "zero", "some-zero-blocks", "one-huge",  "extreme",   "ties",
                               "outlier-edge", "nan",  "infinity",         "subnormal", "threshold", "tiny",
                               "huge",         "wide", "any-bits"};
const char* const kNamesW[] = {"random", "largest", "least", "alternating", "matched"};
const char* const kNamesScale[] = {"usual", "edges", "zeros"};

struct Spec {
  int value[kParameters];
  int operator[](int parameter) const { return value[parameter]; }
};

potq_format format_of(const Spec& spec) {
  const Table& table = tables()[size_t(spec[kTable])];
  potq_format format = {};
  format.rows = spec[kRows];
  format.columns = spec[kColumns];
  format.bits = table.bits;
  format.group = spec[kGroup];
  if (spec[kGroup] == kGroupColumns) format.group = format.columns;
  if (spec[kGroup] == kGroupBeyond) format.group = format.columns + 13;
  if (spec[kGroup] == kGroupLargest) format.group = INT32_MAX;
  format.scale_format = spec[kScaleFormat];
  format.scale_rows = spec[kScaleRows] ? format.rows : 1;
  format.reference_log2 = table.reference_log2;
  format.trellis = table.trellis;
  for (size_t i = 0; i < 16; i++) format.levels[i] = int8_t(i < table.levels.size() ? table.levels[i] : 99);  // 99: not read
  return format;
}

std::string describe(const Spec& spec, int number) {
  const potq_format f = format_of(spec);
  const Table& table = tables()[size_t(spec[kTable])];
  char text[512];
  std::snprintf(text, sizeof text,
                "case %d: table=%s bits=%d reference_log2=%d rows=%d columns=%d group=%d scale=%s scale_rows=%d m=%d "
                "dtype=%s bias=%d x=%s codes=%s scales=%s",
                number, table.name, f.bits, f.reference_log2, f.rows, f.columns, f.group,
                f.scale_format == POTQ_SCALE_E8M0 ? "e8m0" : "float16", f.scale_rows, spec[kM],
                spec[kDtype] == POTQ_BFLOAT16 ? "bfloat16" : "float32", spec[kBias], kNamesX[spec[kFillX]],
                kNamesW[spec[kFillW]], kNamesScale[spec[kFillScale]]);
  return text;
}

// ---- Inputs --------------------------------------------------------------------------------------------------------------

// The sign that kExtreme gives a column and that kMatched answers, so that all products of a row have one sign.
bool positive_column(int column) { return Random(uint64_t(column)).one_in(2); }

// Of a column of a row whose codes before it are there.
uint8_t code_of_extreme_level(const potq_format& format, uint8_t* row, int column, bool largest) {
  uint8_t best = 0;
  int champion = 0;
  for (int code = 0; code < 1 << format.bits; code++) {
    row[column] = uint8_t(code);
    const int level = oracle::level_in_row(format, row, column);
    if (code && (largest ? level <= champion : level >= champion)) continue;
    champion = level, best = row[column];
  }
  return best;
}

std::vector<uint8_t> make_codes(const potq_format& format, int fill, Random& random) {
  uint8_t one = 0;
  const uint8_t largest = code_of_extreme_level(format, &one, 0, true), least = code_of_extreme_level(format, &one, 0, false);
  std::vector<uint8_t> codes(size_t(format.rows) * size_t(format.columns));
  for (int row = 0; row < format.rows; row++) {
    uint8_t* here = &codes[size_t(row) * size_t(format.columns)];
    for (int column = 0; column < format.columns; column++) {
      const uint8_t any = uint8_t(random.below(1 << format.bits));
      const bool far = fill == kAlternating ? (row + column) % 2
                       : fill == kMatched   ? positive_column(column) != (row % 3 == 0)
                                            : fill == kLargestLevel;
      here[column] = fill == kRandomCodes ? any
                     : format.trellis     ? code_of_extreme_level(format, here, column, far)
                     : far                ? largest
                                          : least;
    }
  }
  return codes;
}

int make_scale(int format, int fill, Random& random) {
  if (fill == kZeros) return 0;
  if (format == POTQ_SCALE_E8M0) {
    if (fill == kUsual) return random.between(117, 129);
    return random.pick<int>({0, 1, 2, 126, 127, 128, 253, 254, random.below(255)});
  }
  const int usual = random.between(5, 17) << 10 | random.below(1024);
  if (fill == kUsual) return usual;
  return random.pick<int>({0, 0x0001, 0x0002, 0x03ff, 0x0400, 0x3c00, 0x7bff, random.below(1024), random.below(0x7c00), usual});
}

std::vector<uint8_t> make_scales(const potq_format& format, int fill, Random& random) {
  std::vector<uint8_t> bytes;
  for (int i = 0; i < format.scale_rows * oracle::groups(format); i++) {
    const uint16_t stored = uint16_t(make_scale(format.scale_format, fill, random));
    uint8_t raw[2];
    std::memcpy(raw, &stored, 2);
    if (format.scale_format == POTQ_SCALE_E8M0) {
      bytes.push_back(uint8_t(stored));
    } else {
      bytes.insert(bytes.end(), raw, raw + 2);
    }
  }
  return bytes;
}

void fill_extreme(float* x, int row, int first, int count, Random& random) {
  const float amplitude = std::fabs(random.with_exponent(-8, 8));
  for (int i = 0; i < count; i++) {
    const bool pattern[] = {positive_column(first + i), true, false, (first + i) % 2 == 0};
    x[i] = pattern[row % 4] ? amplitude : -amplitude;
  }
}

// Multiples of one half under a maximum of 127 * 2^k: scaled by 2^-k exactly, half of them are ties.
void fill_ties(float* x, int count, Random& random) {
  const float unit = oracle::power_of_two(random.between(-10, 10) - 1);
  for (int i = 0; i < count; i++) x[i] = random.sign() * float(random.below(254)) * unit;
  x[random.below(count)] = random.sign() * 254 * unit;
}

// Integers whose squares sum to the limit or next to it (where a block has room for that), under 127; then, sometimes, halves
// on top: remainders of 127.
void fill_edge(float* x, int count, int block, Random& random) {
  const float unit = oracle::power_of_two(random.between(-10, 10));
  const bool halves = random.one_in(3);
  int left = oracle::kOutlier * block - 127 * 127 + random.between(-1, 1);
  x[0] = 127 * unit * random.sign();
  for (int i = 1; i < count; i++) {
    const int even_share = left > 0 ? int(std::sqrt(double(left) / (count - i))) : 0;
    const int greedy = left > 0 ? int(std::sqrt(double(left))) : 0;
    const int integer = std::min(126, i + 6 > count ? greedy : even_share);
    left -= integer * integer;
    x[i] = random.sign() * (float(integer) + (halves && integer % 2 == 0 ? 0.5f : 0.0f)) * unit;
  }
}

void fill_threshold(float* x, int count, Random& random) {
  const std::vector<float> edges = {1, 1 - 0x1p-24f, 1 - 0x1p-8f, 1 + 0x1p-23f, 1 + 0x1p-7f, 0.5f, 2};
  for (int i = 0; i < count; i++) x[i] = random.with_exponent(-140, -122);
  x[random.below(count)] = random.sign() * random.pick(edges) * 0x1p-120f;
}

void put_special(float* x, int count, bool nan, Random& random) {
  const bool wanted = random.one_in(4), mixed = random.one_in(8);
  const float infinity = random.sign() * oracle::float_of(0x7f800000);
  const float not_a_number = oracle::float_of(random.pick<uint32_t>({0x7fc00000, 0xffc00000, 0x7fc12345}));
  if (!wanted) return;
  x[random.below(count)] = nan ? not_a_number : infinity;
  if (mixed) x[random.below(count)] = nan ? infinity : not_a_number;
}

float any_bits(Random& random) {
  const float value = oracle::float_of(uint32_t(random.next()));
  const bool keep = random.one_in(8);
  return std::isfinite(value) || keep ? value : 1.0f;
}

float make_element(int fill, Random& random) {
  switch (fill) {
    case kZero: return random.sign() * 0.0f;
    case kSubnormal: return random.sign() * oracle::float_of(uint32_t(random.below(1 << 23)));
    case kTiny: return random.with_exponent(-126, -113);
    case kHuge: return random.with_exponent(110, 127);
    case kWide: return random.with_exponent(-145, 127);
    case kAnyBits: return any_bits(random);
    default: return random.normal();
  }
}

// A row's columns [first, first + count), which share an activation scale.
void fill_block(float* x, int fill, int row, int first, int count, int block, Random& random) {
  const bool zero = fill == kSomeZeroBlocks && random.one_in(2);
  for (int i = 0; i < count; i++) x[i] = make_element(zero ? int(kZero) : fill, random);
  if (fill == kOneHuge) x[random.below(count)] *= 0x1p+20f;
  if (fill == kExtreme) fill_extreme(x, row, first, count, random);
  if (fill == kTies) fill_ties(x, count, random);
  if (fill == kEdge) fill_edge(x, count, block, random);
  if (fill == kThreshold) fill_threshold(x, count, random);
  if (fill == kNan || fill == kInfinity) put_special(x, count, fill == kNan, random);
}

std::vector<float> make_activations(const potq_format& format, int m, int fill, int dtype, Random& random) {
  const int block = oracle::block_columns(format);
  std::vector<float> x(size_t(m) * size_t(format.columns));
  for (int row = 0; row < m; row++) {
    for (int first = 0; first < format.columns; first += block) {
      float* at = &x[size_t(row) * size_t(format.columns) + size_t(first)];
      fill_block(at, fill, row, first, std::min(block, format.columns - first), block, random);
    }
  }
  for (float& value : x) value = oracle::rounded_to(dtype, value);
  return x;
}

std::vector<float> make_bias(int rows, int dtype, Random& random) {
  const float infinity = oracle::float_of(0x7f800000);
  const std::vector<float> special = {-0.0f, 0.0f, 3e38f, -3e38f, 1e-40f, infinity, -infinity, std::nanf("")};
  std::vector<float> bias;
  for (int i = 0; i < rows; i++) {
    const float usual = random.normal(), other = random.pick(special);
    bias.push_back(oracle::rounded_to(dtype, random.one_in(16) ? other : usual));
  }
  return bias;
}

// ---- A case, its inputs and what must come out ---------------------------------------------------------------------------

size_t bytes_of(int dtype) { return dtype == POTQ_FLOAT32 ? 4 : 2; }

std::vector<uint8_t> stored(const std::vector<float>& values, int dtype) {
  std::vector<uint8_t> bytes(values.size() * bytes_of(dtype));
  for (size_t i = 0; i < values.size(); i++) oracle::store(bytes.data(), i, dtype, values[i]);
  return bytes;
}

uint64_t seed_of(int number) { return Random(uint64_t(number) + 1).next(); }

struct Inputs {
  oracle::Weight weight;
  std::vector<float> x, bias;

  Inputs(const Spec& spec, int number) {
    Random random(seed_of(number));
    weight.format = format_of(spec);
    weight.codes = make_codes(weight.format, spec[kFillW], random);
    weight.scale = make_scales(weight.format, spec[kFillScale], random);
    x = make_activations(weight.format, spec[kM], spec[kFillX], spec[kDtype], random);
    if (spec[kBias]) bias = make_bias(weight.format.rows, spec[kDtype], random);
  }
};

class Case {
 public:
  Case(const Spec& spec, int case_number)
      : number(case_number),
        name(describe(spec, number)),
        dtype(spec[kDtype]),
        m(spec[kM]),
        inputs(spec, number),
        format(inputs.weight.format),
        packed("packed", oracle::pack(inputs.weight), 1),
        scale("scale", inputs.weight.scale, format.scale_format == POTQ_SCALE_E8M0 ? 1 : 2),
        x("x", stored(inputs.x, dtype), bytes_of(dtype)),
        bias("bias", stored(inputs.bias, dtype), bytes_of(dtype)),
        tiles("tiles", potq_tiles_bytes(&format), 64) {
    for (const int arithmetic : kArithmetics) {
      expected[arithmetic] = oracle::multiply(inputs.weight, inputs.x, inputs.bias, m, arithmetic);
      for (float& value : expected[arithmetic]) value = oracle::rounded_to(dtype, value);
    }
  }

  size_t outputs() const { return size_t(m) * size_t(format.rows); }

  potq_product product(int arithmetic, int isa, Buffer& y) const {
    potq_product p = {};
    p.format = &format;
    p.tiles = tiles.data();
    p.x = x.data();
    p.bias = bias.bytes() ? bias.data() : nullptr;
    p.y = y.data();
    p.m = m;
    p.dtype = dtype;
    p.arithmetic = arithmetic;
    p.isa = isa;
    return p;
  }

  // Names this case and what is done with it in the messages to come.
  void announce(const std::string& action) const { context = name + ", " + action; }

  const int number;
  const std::string name;
  const int dtype, m;
  const Inputs inputs;
  const potq_format format;
  const Buffer packed, scale, x, bias;
  Buffer tiles;
  std::vector<float> expected[2];  // of each arithmetic, rounded to the dtype
};

std::string action_of(const char* what, int isa, int arithmetic) {
  return std::string(what) + ", isa=" + potq_isa_name(isa) + ", arithmetic=" + (arithmetic == POTQ_INT8 ? "int8" : "float");
}

// ---- Comparing and hashing -----------------------------------------------------------------------------------------------

// The float path may add zeros for padding columns, which can turn -0 into +0.
bool same(float a, float b, bool any_zero) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return oracle::bits_of(a) == oracle::bits_of(b) || (any_zero && a == 0 && b == 0);
}

// The first mismatch of a rows x columns result, if any, is reported; later ones are mostly its echo.
void compare(const Buffer& found, const std::vector<float>& expected, size_t columns, int dtype, bool any_zero) {
  for (size_t i = 0; i < expected.size(); i++) {
    const float value = oracle::load(found.data(), i, dtype);
    if (same(value, expected[i], any_zero)) continue;
    fail("row %zu, column %zu of the result: expected %a, found %a", i / columns, i % columns, double(expected[i]),
         double(value));
    return;
  }
}

// FNV-1a over float32 values with one NaN and one zero.
class Hash {
 public:
  void add(const Buffer& values, int dtype) {
    for (size_t i = 0; i < values.bytes() / bytes_of(dtype); i++) {
      const float value = oracle::load(values.data(), i, dtype);
      const uint32_t bits = std::isnan(value) ? 0x7fc00000u : value == 0 ? 0u : oracle::bits_of(value);
      for (int shift = 0; shift < 32; shift += 8) state_ = (state_ ^ (bits >> shift & 255)) * 0x100000001b3u;
    }
  }
  uint64_t value() const { return state_; }

 private:
  uint64_t state_ = 0xcbf29ce484222325u;
};

struct Tally {
  int isa;
  long long products = 0;
  Hash hash;
};

// ---- Checks of one case --------------------------------------------------------------------------------------------------

// [0, count) cut into random ranges, in random order.
std::vector<std::pair<int, int>> random_ranges(int count, Random& random) {
  std::vector<std::pair<int, int>> ranges;
  const int largest = random.between(1, std::min(count, 5));
  for (int first = 0; first < count;) {
    const int last = std::min(count, first + random.between(1, random.one_in(3) ? count : largest));
    ranges.emplace_back(first, last);
    first = last;
  }
  for (size_t i = ranges.size(); i > 1; i--) std::swap(ranges[i - 1], ranges[size_t(random.below(int(i)))]);
  return ranges;
}

// A lower bound is the codes' own size; above it come padding to whole units and tiles, the decoding of a trellis, and 16
// scales a group.
void check_sizes(const Case& c) {
  const size_t row_blocks = size_t(c.format.rows + kRowBlock - 1) / kRowBlock, unit = size_t(oracle::block_columns(c.format));
  const size_t columns = (size_t(c.format.columns) + unit - 1) / unit * unit;
  const size_t codes = row_blocks * kRowBlock * columns * size_t(c.format.bits + c.format.trellis) / 8;
  const size_t scales = row_blocks * (size_t(oracle::groups(c.format)) * kRowBlock * 2 + 128);
  const size_t least = size_t(c.format.rows) * size_t(c.format.columns) * size_t(c.format.bits) / 8;
  if (size_t(potq_row_blocks(&c.format)) != row_blocks) fail("potq_row_blocks is %d", potq_row_blocks(&c.format));
  if (c.tiles.bytes() < least || c.tiles.bytes() > codes + scales) {
    fail("tiles take %zu bytes, expected %zu to %zu", c.tiles.bytes(), least, codes + scales);
  }
}

// Leaves the tiles packed and read-only.
void check_pack(Case& c) {
  Random random(seed_of(c.number) ^ 1);
  const int garbage = random.below(256);
  c.announce("potq_pack");
  if (const char* reason = potq_unsupported(&c.format)) fail("potq_unsupported: %s", reason);
  check_sizes(c);
  c.tiles.fill(garbage);
  for (const auto& [first, last] : random_ranges(potq_row_blocks(&c.format), random)) {
    potq_pack(&c.format, c.packed.data(), c.scale.data(), c.tiles.data(), first, last);
  }
  c.tiles.check();
  c.tiles.freeze();
  c.announce("potq_pack_all");
  Buffer again("tiles", c.tiles.bytes(), 64);
  again.fill(garbage);
  potq_pack_all(&c.format, c.packed.data(), c.scale.data(), again.data(), random.between(1, 3));
  if (std::memcmp(again.data(), c.tiles.data(), again.bytes())) fail("tiles differ from those of potq_pack over ranges");
}

// What must have been written by now: multiply copies each range that it hands to the kernel from y, and nothing else may
// differ.
class Shadow {
 public:
  Shadow(const Case& c, Buffer& y) : case_(c), y_(y) {
    y_.fill(0xa5);
    copy_.assign(y_.data(), y_.data() + y_.bytes());
  }

  void accept(int64_t first, int rows, int first_block, int last_block) {
    const size_t width = size_t(case_.format.rows), element = bytes_of(case_.dtype);
    const size_t from = size_t(first_block) * kRowBlock, to = std::min(width, size_t(last_block) * kRowBlock);
    for (size_t i = size_t(first); i < size_t(first + rows); i++) {
      const size_t at = (i * width + from) * element;
      std::memcpy(&copy_[at], y_.data() + at, (to - from) * element);
    }
    if (std::memcmp(copy_.data(), y_.data(), copy_.size()) == 0) return;
    fail("potq_multiply of rows %lld to %lld, blocks %d to %d wrote other outputs", static_cast<long long>(first),
         static_cast<long long>(first + rows), first_block, last_block);
  }

 private:
  const Case& case_;
  Buffer& y_;
  std::vector<uint8_t> copy_;
};

void multiply_rows(const Case& c, const potq_product& product, int64_t first, int rows, Shadow& shadow, Random& random) {
  Buffer panels("panels", potq_panels_bytes(&c.format, product.isa, product.arithmetic, rows), 64);
  panels.fill(random.below(256));
  for (int i = potq_panels(product.isa, product.arithmetic, rows); i-- > 0;)
    potq_prepare(&product, first, rows, i, panels.data());
  panels.freeze();
  for (const auto& [first_block, last_block] : random_ranges(potq_row_blocks(&c.format), random)) {
    potq_multiply(&product, panels.data(), first, rows, first_block, last_block);
    shadow.accept(first, rows, first_block, last_block);
  }
}

// The functions without threads, over one panel and over several.
void check_ranges(const Case& c, int arithmetic, Tally& tally) {
  Random random(seed_of(c.number) ^ 2);
  c.announce(action_of("potq_multiply", tally.isa, arithmetic));
  Buffer y("y", c.outputs() * bytes_of(c.dtype), bytes_of(c.dtype));
  const potq_product product = c.product(arithmetic, tally.isa, y);
  constexpr int kMost = 40;  // rows: several panels
  Shadow shadow(c, y);
  for (int64_t first = 0; first < c.m;) {
    const int rows = int(std::min<int64_t>(c.m - first, random.one_in(2) ? kMost : random.between(1, kMost)));
    multiply_rows(c, product, first, rows, shadow, random);
    first += rows;
  }
  compare(y, c.expected[arithmetic], size_t(c.format.rows), c.dtype, arithmetic == POTQ_FLOAT);
  tally.hash.add(y, c.dtype);
  tally.products++;
}

using Batch = std::vector<std::unique_ptr<Case>>;

// All products of a batch, both arithmetics, in one call.
void check_linear(const Batch& batch, int isa, int threads) {
  std::vector<std::unique_ptr<Buffer>> outputs;
  std::vector<potq_product> products;
  for (const auto& c : batch) {
    for (const int arithmetic : kArithmetics) {
      outputs.push_back(std::make_unique<Buffer>("y", c->outputs() * bytes_of(c->dtype), bytes_of(c->dtype)));
      outputs.back()->fill(0xa5);
      products.push_back(c->product(arithmetic, isa, *outputs.back()));
    }
  }
  const std::string threads_text = ", threads=" + std::to_string(threads);
  batch.front()->announce("first of " + std::to_string(products.size()) + " in potq_linear" + threads_text);
  if (const int code = potq_linear(products.data(), int(products.size()), threads)) fail("potq_linear returned %d", code);
  for (size_t i = 0; i < products.size(); i++) {
    const Case& c = *batch[i / 2];
    c.announce(action_of("potq_linear", isa, products[i].arithmetic) + threads_text);
    outputs[i]->check();
    compare(*outputs[i], c.expected[i % 2], size_t(c.format.rows), c.dtype, products[i].arithmetic == POTQ_FLOAT);
  }
}

std::vector<uint8_t> make_ids(const Case& c, Random& random) {
  std::vector<int64_t> ids = {c.format.rows - 1, 0};
  for (int i = random.below(8); i > 0; i--) ids.push_back(random.below(c.format.rows));
  std::vector<uint8_t> bytes(ids.size() * 8);
  std::memcpy(bytes.data(), ids.data(), bytes.size());
  return bytes;
}

std::vector<float> expected_lookup(const Case& c, const int64_t* ids, int count) {
  std::vector<float> expected;
  for (int i = 0; i < count; i++) {
    for (int column = 0; column < c.format.columns; column++) {
      expected.push_back(oracle::rounded_to(c.dtype, oracle::dequantized(c.inputs.weight, int(ids[i]), column)));
    }
  }
  return expected;
}

void check_lookup(const Case& c, std::vector<Tally>& tallies) {
  Random random(seed_of(c.number) ^ 3);
  const Buffer ids_buffer("ids", make_ids(c, random), 8);
  const auto* ids = reinterpret_cast<const int64_t*>(ids_buffer.data());
  const int count = int(ids_buffer.bytes() / 8);
  const size_t columns = size_t(c.format.columns);
  const std::vector<float> expected = expected_lookup(c, ids, count);
  Buffer out("out", expected.size() * bytes_of(c.dtype), bytes_of(c.dtype)), all("out", out.bytes(), bytes_of(c.dtype));
  out.fill(0xa5);
  all.fill(0xa5);
  c.announce("potq_lookup");
  for (const auto& [first, last] : random_ranges(count, random)) {
    potq_lookup(&c.format, c.packed.data(), c.scale.data(), ids, first, last, out.data(), c.dtype);
  }
  compare(out, expected, columns, c.dtype, false);
  c.announce("potq_lookup_all");
  const int threads = random.between(1, 3);
  const int64_t bad =
      potq_lookup_all(&c.format, c.packed.data(), c.scale.data(), ids, count, c.format.rows, all.data(), c.dtype, threads);
  if (bad != -1) fail("refused id %lld", static_cast<long long>(bad));
  compare(all, expected, columns, c.dtype, false);
  for (Tally& tally : tallies) tally.hash.add(out, c.dtype);
}

// Rows read from the tiles are the rows of the canonical weight, as float32.
void check_lookup_tiles(const Case& c) {
  Random random(seed_of(c.number) ^ 4);
  Buffer out("out", size_t(c.format.columns) * 4, 4);
  for (int i = 0; i < 4; i++) {
    const int row = random.below(c.format.rows);
    std::vector<float> expected;
    for (int column = 0; column < c.format.columns; column++)
      expected.push_back(oracle::dequantized(c.inputs.weight, row, column));
    c.announce("potq_lookup_tiles of row " + std::to_string(row));
    out.fill(0xa5);
    potq_lookup_tiles(&c.format, c.tiles.data(), row, reinterpret_cast<float*>(out.data()));
    compare(out, expected, expected.size(), POTQ_FLOAT32, false);
  }
}

void check_batch(Batch& batch, std::vector<Tally>& tallies, const std::vector<int>& threads) {
  for (auto& c : batch) {
    check_pack(*c);
    check_lookup(*c, tallies);
    check_lookup_tiles(*c);
  }
  for (Tally& tally : tallies) {
    for (const auto& c : batch) {
      for (const int arithmetic : kArithmetics) check_ranges(*c, arithmetic, tally);
    }
    for (const int count : threads) check_linear(batch, tally.isa, count);
  }
  batch.clear();
}

// ---- Which cases ---------------------------------------------------------------------------------------------------------

using Domain = std::vector<std::vector<int>>;  // the values of each parameter

std::vector<int> range(int first, int last) {
  std::vector<int> values;
  for (int i = first; i <= last; i++) values.push_back(i);
  return values;
}

std::vector<int> joined(std::vector<int> values, const std::vector<int>& more) {
  values.insert(values.end(), more.begin(), more.end());
  return values;
}

Domain short_domain() {
  Domain domain(kParameters);
  domain[kTable] = range(0, int(tables().size()) - 1);
  domain[kGroup] = {16, 32, 48, 64, 80, 96, 128, 192, kGroupColumns, kGroupBeyond, kGroupLargest};
  domain[kRows] = {1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 80, 97, 113, 128, 129, 130};
  domain[kColumns] = {1,  3,  4,   15,  16,  17,  31,  32,  33,  47,  48,  49,  63,  64, 65,
                      80, 96, 100, 127, 128, 129, 130, 160, 191, 192, 193, 257, 320, 576};
  domain[kM] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 20, 24, 25, 31, 32, 33};
  domain[kDtype] = {POTQ_FLOAT32, POTQ_BFLOAT16};
  domain[kBias] = {0, 1};
  domain[kScaleFormat] = {POTQ_SCALE_FLOAT16, POTQ_SCALE_E8M0};
  domain[kScaleRows] = {1, 0};
  domain[kFillX] = range(0, kFillsX - 1);
  domain[kFillW] = range(0, kFillsW - 1);
  domain[kFillScale] = range(0, kFillsScale - 1);
  return domain;
}

Domain full_domain() {
  Domain domain = short_domain();
  domain[kGroup] = joined(domain[kGroup], {112, 144, 160, 224, 256, 320});
  domain[kRows] = range(1, 130);
  domain[kColumns] = joined(range(1, 194), {255, 256, 257, 300, 319, 320, 321, 383, 384, 511, 512, 513, 576, 640, 768});
  domain[kM] = range(1, 33);
  return domain;
}

Spec random_spec(const Domain& domain, Random& random) {
  Spec spec;
  for (int p = 0; p < kParameters; p++) spec.value[p] = random.pick(domain[size_t(p)]);
  return spec;
}

// Cases that together hold every pair of values of two parameters, found greedily.
class PairCover {
 public:
  PairCover(const Domain& domain, uint64_t seed) : domain_(domain), random_(seed) {
    size_t slots = 0;
    for (int a = 0; a < kParameters; a++) {
      for (int b = a + 1; b < kParameters; b++) {
        base_[a][b] = slots;
        slots += size_t(size(a) * size(b));
        for (int i = 0; i < size(a) * size(b); i++) pairs_.push_back({a, i / size(b), b, i % size(b)});
      }
    }
    covered_.resize(slots);
    for (size_t i = pairs_.size(); i > 1; i--) std::swap(pairs_[i - 1], pairs_[size_t(random_.below(int(i)))]);
  }

  void append_to(std::vector<Spec>* specs) {
    for (const Pair& pair : pairs_) {
      if (!covered_[slot(pair.a, pair.i, pair.b, pair.j)]) specs->push_back(complete(pair));
    }
  }

 private:
  struct Pair {
    int a, i, b, j;  // value i of parameter a with value j of parameter b
  };

  int size(int parameter) const { return int(domain_[size_t(parameter)].size()); }

  size_t slot(int a, int i, int b, int j) const {
    return a < b ? base_[a][b] + size_t(i * size(b) + j) : base_[b][a] + size_t(j * size(a) + i);
  }

  // New pairs that value i of parameter p makes with the choices so far (-1: open).
  int gain(const int* chosen, int p, int i) const {
    int sum = 0;
    for (int q = 0; q < kParameters; q++) {
      if (q != p && chosen[q] >= 0) sum += !covered_[slot(p, i, q, chosen[q])];
    }
    return sum;
  }

  int best_value(const int* chosen, int p) {
    const int start = random_.below(size(p));
    int best = start;
    for (int k = 1; k < size(p); k++) {
      const int i = (start + k) % size(p);
      if (gain(chosen, p, i) > gain(chosen, p, best)) best = i;
    }
    return best;
  }

  Spec complete(const Pair& pair) {
    int chosen[kParameters];
    std::fill(chosen, chosen + kParameters, -1);
    chosen[pair.a] = pair.i;
    chosen[pair.b] = pair.j;
    Spec spec;
    for (int p = 0; p < kParameters; p++) {
      if (chosen[p] < 0) chosen[p] = best_value(chosen, p);
      spec.value[p] = domain_[size_t(p)][size_t(chosen[p])];
    }
    for (int a = 0; a < kParameters; a++) {
      for (int b = a + 1; b < kParameters; b++) covered_[slot(a, chosen[a], b, chosen[b])] = true;
    }
    return spec;
  }

  const Domain domain_;
  Random random_;
  size_t base_[kParameters][kParameters];
  std::vector<Pair> pairs_;
  std::vector<bool> covered_;
};

// Every combination of the values of some parameters; the others at random.
void append_sweep(const Domain& domain, std::initializer_list<int> parameters, Random& random, std::vector<Spec>* specs) {
  int combinations = 1;
  for (const int p : parameters) combinations *= int(domain[size_t(p)].size());
  for (int i = 0; i < combinations; i++) {
    Spec spec = random_spec(domain, random);
    int rest = i;
    for (const int p : parameters) {
      const int count = int(domain[size_t(p)].size());
      spec.value[p] = domain[size_t(p)][size_t(rest % count)];
      rest /= count;
    }
    specs->push_back(spec);
  }
}

// Sums as large as they get, of every table: what a 16-bit intermediate would not hold.
void append_saturating(Domain domain, Random& random, std::vector<Spec>* specs) {
  domain[kFillX] = {kExtreme};
  append_sweep(domain, {kTable, kFillW}, random, specs);
}

// Beyond one panel, one cache block of panels, one thread's share; work enough for look-ups and packing to take threads at all.
void append_large(const Domain& domain, bool full, Random& random, std::vector<Spec>* specs) {
  struct Size {
    int rows, columns, m;
  };
  std::vector<Size> sizes = {{1040, 192, 3}, {33, 4160, 6}, {17, 11008, 2}, {2500, 40, 1}, {5, 2100, 70}, {3, 4200, 140}};
  if (full) sizes = {{1040, 192, 33}, {5000, 576, 1}, {200, 4160, 70}, {17, 50000, 3}, {64, 1000, 550}, {20000, 70, 2}};
  for (size_t i = 0; i < tables().size() * sizes.size(); i++) {
    const Size& size = sizes[i % sizes.size()];
    if (!full && random.below(4)) continue;
    Spec spec = random_spec(domain, random);
    spec.value[kTable] = int(i / sizes.size());
    spec.value[kRows] = size.rows;
    spec.value[kColumns] = size.columns;
    spec.value[kM] = size.m;
    specs->push_back(spec);
  }
}

std::vector<Spec> all_specs(bool full) {
  const Domain few = short_domain();
  Random random(1);
  std::vector<Spec> specs;
  PairCover(few, 2).append_to(&specs);
  append_saturating(few, random, &specs);
  append_large(few, false, random, &specs);
  if (!full) return specs;
  PairCover(full_domain(), 3).append_to(&specs);
  append_sweep(few, {kTable, kGroup, kM}, random, &specs);
  append_sweep(few, {kTable, kFillX, kFillW, kScaleFormat, kFillScale}, random, &specs);
  append_large(full_domain(), true, random, &specs);
  return specs;
}

// ---- The interface besides products --------------------------------------------------------------------------------------

Spec small_spec() {
  Spec spec = {};
  spec.value[kRows] = 40;
  spec.value[kColumns] = 100;
  spec.value[kGroup] = 32;
  spec.value[kScaleRows] = 1;
  spec.value[kM] = 1;
  return spec;
}

void check_refused(const char* what, const std::function<void(potq_format*)>& change) {
  potq_format format = format_of(small_spec());
  change(&format);
  const char* reason = potq_unsupported(&format);
  context = std::string("potq_unsupported, ") + what;
  if (!reason || !*reason) fail("expected a reason, found none");
}

void check_accepted(const char* what, const std::function<void(potq_format*)>& change) {
  potq_format format = format_of(small_spec());
  change(&format);
  context = std::string("potq_unsupported, ") + what;
  if (const char* reason = potq_unsupported(&format)) fail("expected none, found: %s", reason);
}

void check_formats() {
  for (const int bits : {-1, 0, 1, 5, 6, 7, 9, 16, 32}) {
    check_refused("bits", [=](potq_format* f) { f->bits = bits; });
  }
  for (const int group : {INT32_MIN, -16, -1, 0, 1, 8, 20, 33, 99}) {
    check_refused("group", [=](potq_format* f) { f->group = group; });
  }
  for (const int size : {INT32_MIN, -1, 0}) {
    check_refused("rows", [=](potq_format* f) { f->rows = f->scale_rows = size; });
    check_refused("columns", [=](potq_format* f) { f->columns = size; });
  }
  for (const int format : {-1, 2}) check_refused("scale_format", [=](potq_format* f) { f->scale_format = format; });
  for (const int log2 : {INT32_MIN, -200, 200})
    check_refused("reference_log2", [=](potq_format* f) { f->reference_log2 = log2; });
  for (const int rows : {-1, 0, 2, 39, 41}) check_refused("scale_rows", [=](potq_format* f) { f->scale_rows = rows; });
  for (const int group : {16, 96, 100, 101, 112, INT32_MAX}) {
    check_accepted("group", [=](potq_format* f) { f->group = group; });
  }
  check_accepted("scale_rows = 1", [](potq_format* f) { f->scale_rows = 1; });
  check_accepted("one weight", [](potq_format* f) { f->rows = f->columns = f->group = f->scale_rows = 1; });
  for (const int bits : {2, 3, 4, 8}) {
    check_accepted("bits", [=](potq_format* f) { f->bits = bits; });
  }
  for (const int bits : {2, 3}) check_accepted("trellis", [=](potq_format* f) { f->bits = bits, f->trellis = 1; });
  for (const int bits : {4, 8}) check_refused("trellis", [=](potq_format* f) { f->bits = bits, f->trellis = 1; });
  for (const int trellis : {-1, 2, INT32_MIN}) check_refused("trellis", [=](potq_format* f) { f->trellis = trellis; });
}

int isa_count() {
  int count = 0;
  while (potq_isa_name(count)) count++;
  return count;
}

void check_names() {
  context = "instruction sets";
  if (potq_abi() != POTQ_ABI) fail("potq_abi is %d, the header's %d", potq_abi(), POTQ_ABI);
  const char* const names[] = {"scalar", "avx2", "avxvnni", "avx512vnni", "neon", "neondot", "neoni8mm"};
  for (int isa = 0; isa < 7; isa++) {
    const char* name = potq_isa_name(isa);
    if (!name || std::strcmp(name, names[isa])) return fail("%d is %s, expected %s", isa, name ? name : "NULL", names[isa]);
  }
  if (isa_count() != 7) fail("found %d, expected 7", isa_count());
  if (potq_isa_usable(0) != 1) fail("scalar is not usable");
}

// The position of a bad id comes back, and the output stays as it was.
void check_refused_id(const Case& c, std::vector<int64_t> ids, int64_t table_rows, int64_t expected) {
  Buffer out("out", ids.size() * size_t(c.format.columns) * 4, 4);
  out.fill(0xa5);
  const std::vector<uint8_t> before(out.data(), out.data() + out.bytes());
  for (int threads = 1; threads <= 3; threads++) {
    const int64_t found = potq_lookup_all(&c.format, c.packed.data(), c.scale.data(), ids.data(), int64_t(ids.size()),
                                          table_rows, out.data(), POTQ_FLOAT32, threads);
    if (found != expected) fail("bad id at %lld, found %lld", static_cast<long long>(expected), static_cast<long long>(found));
    if (std::memcmp(before.data(), out.data(), out.bytes())) fail("an output was written in spite of a bad id");
  }
}

void check_refused_ids() {
  const Case c(small_spec(), 0);
  c.announce("potq_lookup_all with a bad id");
  check_refused_id(c, {-1}, 40, 0);
  check_refused_id(c, {0, 39, 40, 3, -1}, 40, 2);
  check_refused_id(c, {0, 1, 2, 3, INT64_MIN}, 40, 4);
  check_refused_id(c, {0, INT64_MAX, 5}, 40, 1);
  check_refused_id(c, {0, int64_t(1) << 32, 5}, 40, 1);
  check_refused_id(c, {3, 9, 10, 11}, 10, 2);
}

// No products, products of no rows and no ids must leave everything as it is.
void check_nothing_to_do(int isa) {
  Case c(small_spec(), 0);
  check_pack(c);
  c.announce(action_of("nothing to do", isa, POTQ_INT8));
  Buffer nothing("y of no rows", 0, 4);
  potq_product product = c.product(POTQ_INT8, isa, nothing);
  product.m = 0;
  if (potq_linear(&product, 1, 2)) fail("potq_linear with m = 0 failed");
  if (potq_linear(nullptr, 0, 2)) fail("potq_linear of no products failed");
  const int64_t bad =
      potq_lookup_all(&c.format, c.packed.data(), c.scale.data(), nullptr, 0, 40, nothing.data(), POTQ_FLOAT32, 2);
  if (bad != -1) fail("potq_lookup_all of no ids found a bad one");
}

// ---- Command line --------------------------------------------------------------------------------------------------------

struct Options {
  bool full = false, list = false;
  const char* isa = nullptr;
  int only = -1;
};

Options parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; i++) {
    const std::string argument = arguments[i];
    const bool more = i + 1 < count;
    if (argument == "--full") {
      options.full = true;
    } else if (argument == "--list") {
      options.list = true;
    } else if (argument == "--isa" && more) {
      options.isa = arguments[++i];
    } else if (argument == "--case" && more) {
      options.only = std::atoi(arguments[++i]);
    } else {
      give_up("usage: selftest [--full] [--isa NAME] [--case N] [--list]");
    }
  }
  return options;
}

void list_isas() {
  const char* const states[] = {"not compiled in", "not supported by this CPU", "usable"};
  for (int isa = 0; isa < isa_count(); isa++) std::printf("%-10s  %s\n", potq_isa_name(isa), states[potq_isa_usable(isa) + 1]);
  std::printf("OpenMP      %s\n", potq_has_openmp() ? "yes" : "no");
}

std::vector<Tally> chosen_isas(const char* only) {
  std::vector<Tally> tallies;
  for (int isa = 0; isa < isa_count(); isa++) {
    const bool wanted = !only || !std::strcmp(only, potq_isa_name(isa));
    if (wanted && potq_isa_usable(isa) == 1) tallies.push_back({isa, 0, {}});
  }
  if (tallies.empty()) give_up("no such instruction set here; see --list");
  return tallies;
}

void run_cases(const Options& options, std::vector<Tally>& tallies) {
  const std::vector<Spec> specs = all_specs(options.full);
  Batch batch;
  const int count = int(specs.size());
  for (int number = 0; number < count; number++) {
    if (options.only >= 0 && number != options.only) continue;
    context = describe(specs[size_t(number)], number);
    batch.push_back(std::make_unique<Case>(specs[size_t(number)], number));
    if (batch.size() < 3) continue;
    // The short form takes thread counts in turn.
    check_batch(batch, tallies, options.full ? range(1, 3) : std::vector<int>{1 + number / 3 % 3});
    if (options.full && number % 3000 < 3) std::fprintf(stderr, "%d of %d\n", number, count);
  }
  if (!batch.empty()) check_batch(batch, tallies, range(1, 3));
}

}  // namespace

int main(int count, char** arguments) {
  const Options options = parse(count, arguments);
  catch_faults();
  check_names();
  if (failures) return 1;
  if (options.list) {
    list_isas();
    return 0;
  }
  check_formats();
  check_refused_ids();
  std::vector<Tally> tallies = chosen_isas(options.isa);
  for (const Tally& tally : tallies) check_nothing_to_do(tally.isa);
  run_cases(options, tallies);
  for (const Tally& tally : tallies) {
    std::printf("%-10s  %lld products  hash %016llx\n", potq_isa_name(tally.isa), tally.products,
                static_cast<unsigned long long>(tally.hash.value()));
  }
  for (const Tally& tally : tallies) {
    if (tally.hash.value() == tallies[0].hash.value()) continue;
    context = "hashes";
    fail("%s differs from %s", potq_isa_name(tally.isa), potq_isa_name(tallies[0].isa));
  }
  if (failures) std::printf("%d failures\n", failures);
  return failures ? 1 : 0;
}
