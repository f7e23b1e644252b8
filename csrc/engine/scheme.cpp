#include "scheme.h"

#include <algorithm>
#include <set>
#include <utility>

#include "error.h"

namespace potq {
namespace engine {
namespace {

constexpr uint32_t kMaxPatterns = 1 << 16;
constexpr const char* kUpgrade = "upgrade potq (pip install --upgrade potq)";
// those of src/potq/numerics/features.py
constexpr std::string_view kFeatures[] = {"bit-planes",    "e8m0-scales", "expert-stacks", "row-scales",
                                          "signed-scales", "table-grids", "tensor-scales", "trellis"};
// keys and words of quantization_config
constexpr std::string_view kKeys[] = {"quant_method", "version", "features", "scheme",       "embedding",
                                      "targets",      "ignore",  "effort",   "scale_method", "scale_candidates"};
constexpr std::string_view kEffortKeys[] = {"compensate", "ordered", "damping",   "rounds",    "scope",
                                            "codes",      "epochs",  "code_rate", "scale_rate"};
constexpr std::string_view kScaleMethods[] = {"absmax", "mse", "weighted", "fisher"};
constexpr std::string_view kScopes[] = {"none", "block", "model"};
constexpr std::string_view kRoundings[] = {"nearest", "log"};
constexpr std::string_view kGridKeys[] = {"bits", "encoding", "magnitudes", "table"};

template <size_t n>
bool among(std::string_view word, const std::string_view (&words)[n]) {
  return std::find(words, words + n, word) != words + n;
}

[[noreturn]] void wrong(const std::string& where, const char* what) {
  fail("%s: quantization_config: %s; the file is damaged or of a newer potq", where.c_str(), what);
}

// What is not there passes.
template <size_t n>
void check_word(const Value& value, const char* key, const std::string_view (&words)[n], const std::string& where) {
  if (!value) return;
  if (!value.is(Kind::kString)) wrong(where, (std::string(key) + " is not a word").c_str());
  if (!among(value.string(), words)) wrong(where, ("unknown " + std::string(key) + " " + quoted(value.string())).c_str());
}

template <size_t n>
void check_keys(const Value& object, const char* what, const std::string_view (&keys)[n], const std::string& where) {
  for (Value entry = object.first(); entry; entry = entry.next()) {
    if (!among(entry.key(), keys)) wrong(where, (std::string(what) + " has the unknown key " + quoted(entry.key())).c_str());
  }
}

// What another potq wrote, and this one cannot read: before anything else is looked at, and in Python's words.
void require_readable(const Value& config, const std::string& file) {
  const Value version = config["version"], features = config["features"];
  if (version && !version.is(Kind::kInteger)) wrong(file, "version is not an integer");
  if (version && version.integer() != 1)
    fail("%s is of format version %lld, this potq reads version 1; %s", file.c_str(), static_cast<long long>(version.integer()),
         kUpgrade);
  if (!features) return;
  const auto damaged = [&] { fail("%s: features is not a list of names; the file is damaged, copy it again", file.c_str()); };
  if (!features.is(Kind::kArray)) damaged();
  for (Value name = features.first(); name; name = name.next()) {
    if (!name.is(Kind::kString)) damaged();
    if (!among(name.string(), kFeatures))
      fail("%s uses the feature %s, which this potq does not know; %s", file.c_str(), quoted(name.string()).c_str(), kUpgrade);
  }
}

// How the weights were made is of no use here, but a word that is not known is of a newer potq.
void check_making(const Value& config, const std::string& where) {
  const Value effort = config["effort"], candidates = config["scale_candidates"];
  check_word(config["scale_method"], "scale_method", kScaleMethods, where);
  if (!candidates.null() && !candidates.is(Kind::kInteger)) wrong(where, "scale_candidates is not an integer");
  if (effort.null()) return;
  if (!effort.is(Kind::kObject)) wrong(where, "effort is not an object");
  check_keys(effort, "effort", kEffortKeys, where);
  check_word(effort["scope"], "scope", kScopes, where);
}

std::vector<int64_t> read_levels(const Value& list, const std::string& where) {
  std::vector<int64_t> levels;
  if (list && !list.is(Kind::kArray)) wrong(where, "a grid's levels are not a list");
  if (!list) return levels;
  if (list.size() > 256) wrong(where, "a grid has more than 256 levels");
  for (Value level = list.first(); level; level = level.next()) {
    if (!level.is(Kind::kInteger) || level.integer() > (int64_t(1) << 62) || level.integer() < -(int64_t(1) << 62))
      wrong(where, "a grid has a level that is not an integer, or beyond 2^62");
    levels.push_back(level.integer());
  }
  return levels;
}

void read_sign_magnitude(std::vector<int64_t> magnitudes, Scheme* scheme, const std::string& where) {
  const size_t half = size_t(1) << (scheme->bits - 1);
  if (magnitudes.size() != half || magnitudes[0] < 0 || !magnitudes.back() ||
      !std::is_sorted(magnitudes.begin(), magnitudes.end()))
    wrong(where, "a grid's magnitudes are not 2^(bits-1) ascending numbers");
  scheme->levels = magnitudes;
  for (const int64_t magnitude : magnitudes) scheme->levels.push_back(-magnitude);
  for (size_t i = 1; i < half; i++) {
    if (magnitudes[i] == magnitudes[i - 1]) scheme->unused[i] = scheme->unused[half + i] = 1;
  }
}

void read_grid(const Value& grid, Scheme* scheme, const std::string& where) {
  const Value bits = grid["bits"], encoding = grid["encoding"];
  check_keys(grid, "a grid", kGridKeys, where);
  if (!bits.is(Kind::kInteger) || bits.integer() < 2 || bits.integer() > 8) wrong(where, "a grid has not 2 to 8 bits");
  scheme->bits = int(bits.integer());
  const size_t count = size_t(1) << scheme->bits;
  scheme->unused.assign(count, 0);
  if (encoding && !encoding.is(Kind::kString)) wrong(where, "encoding is not a word");
  const std::string_view name = encoding ? encoding.string() : "sign-magnitude";
  for (const auto& [key, owner] : {std::pair("magnitudes", "sign-magnitude"), std::pair("table", "table")}) {
    if (name != owner && grid[key] && !(grid[key].is(Kind::kArray) && !grid[key].size()))
      wrong(where, ("a grid of encoding " + quoted(name) + " has " + key).c_str());
  }
  if (name == "twos-complement") {
    scheme->twos_complement = true;
    for (size_t code = 0; code < count; code++)
      scheme->levels.push_back(int64_t(code) - (code >= count / 2 ? int64_t(count) : 0));
  } else if (name == "table") {
    scheme->levels = read_levels(grid["table"], where);
    if (scheme->levels.size() != count) wrong(where, "a grid's table has not 2^bits levels");
  } else if (name == "sign-magnitude") {
    read_sign_magnitude(read_levels(grid["magnitudes"], where), scheme, where);
  } else {
    wrong(where, ("unknown encoding " + quoted(name)).c_str());
  }
  int64_t largest = 0;
  for (const int64_t level : scheme->levels) largest = std::max(largest, level < 0 ? -level : level);
  if (!largest) wrong(where, "a grid's levels are all zero");
  while (largest >> scheme->reference_log2 > 1) scheme->reference_log2++;
}

bool read_flag(const Value& entry, const char* key, const std::string& where) {
  if (!entry.is(Kind::kTrue) && !entry.is(Kind::kFalse))
    wrong(where, (std::string(key) + " is neither true nor false").c_str());
  return entry.is(Kind::kTrue);
}

// Numbers of levels are what a trellis stores.
void read_trellis(Scheme* scheme, const std::string& where) {
  if (scheme->e8m0 || scheme->signed_scale || scheme->grouping == Scheme::kTensor)
    wrong(where, "trellis wants scale_dtype float16, no signed_scale, and groups within a row");
  std::sort(scheme->levels.begin(), scheme->levels.end());
  if (scheme->bits < 3 || std::adjacent_find(scheme->levels.begin(), scheme->levels.end()) != scheme->levels.end())
    wrong(where, "trellis wants a grid of 3 bits or more, every level of it once");
}

Scheme read_scheme(const Value& value, const std::string& where) {
  Scheme scheme;
  if (!value.is(Kind::kObject) || !value["grid"].is(Kind::kObject)) wrong(where, "a scheme has no grid");
  for (Value entry = value.first(); entry; entry = entry.next()) {
    const std::string_view key = entry.key();
    if (key == "grid") {
      read_grid(entry, &scheme, where);
    } else if (key == "group_size") {
      if (entry.is(Kind::kInteger) && entry.integer() > 0 && entry.integer() < INT32_MAX)
        scheme.group = entry.integer();
      else if (entry.is(Kind::kString) && (entry.string() == "row" || entry.string() == "tensor"))
        scheme.grouping = entry.string() == "row" ? Scheme::kRow : Scheme::kTensor;
      else
        wrong(where, "group_size is neither a positive number nor 'row' or 'tensor'");
    } else if (key == "scale_dtype") {
      if (!entry.is(Kind::kString) || (entry.string() != "float16" && entry.string() != "e8m0"))
        wrong(where, "scale_dtype is neither float16 nor e8m0");
      scheme.e8m0 = entry.string() == "e8m0";
    } else if (key == "row_scale") {
      scheme.row_scale = read_flag(entry, "row_scale", where);
    } else if (key == "signed_scale") {
      scheme.signed_scale = read_flag(entry, "signed_scale", where);
    } else if (key == "trellis") {
      scheme.trellis = read_flag(entry, "trellis", where);
    } else if (key == "rounding") {
      check_word(entry, "rounding", kRoundings, where);
    } else {
      wrong(where, ("a scheme has the unknown key " + quoted(key)).c_str());
    }
  }
  if (scheme.signed_scale && scheme.e8m0) wrong(where, "signed_scale wants scale_dtype float16");
  if (scheme.row_scale && (!scheme.e8m0 || scheme.grouping == Scheme::kTensor))
    wrong(where, "row_scale wants scale_dtype e8m0, and groups within a row");
  if (scheme.trellis) read_trellis(&scheme, where);
  if (scheme.grouping == Scheme::kGroups && !scheme.group) scheme.group = 64;
  return scheme;
}

}  // namespace

bool Scheme::fits_int8() const {
  return std::all_of(levels.begin(), levels.end(), [](int64_t level) { return level >= -128 && level <= 127; });
}

Quantization::Quantization(const Value& config, const std::string& file) {
  if (config.null()) return;
  const Value method = config["quant_method"];
  if (!method.is(Kind::kString) || method.string() != "potq")
    fail("%s: quantized by %s, which the engine does not read; it reads potq and full precision", file.c_str(),
         method.is(Kind::kString) ? quoted(method.string()).c_str() : "an unnamed method");
  require_readable(config, file);
  check_keys(config, "it", kKeys, file);
  check_making(config, file);
  scheme_ = std::make_unique<Scheme>(read_scheme(config["scheme"], file));
  if (!config["embedding"].null()) embedding_ = std::make_unique<Scheme>(read_scheme(config["embedding"], file));

  const Value targets = config["targets"], ignore = config["ignore"];
  const bool pairs = targets.is(Kind::kArray);
  std::set<std::string_view> patterns;
  if (targets && ((!pairs && !targets.is(Kind::kObject)) || targets.size() > kMaxPatterns))
    wrong(file, "targets are not a list of patterns and schemes");
  for (Value entry = targets ? targets.first() : Value(); entry; entry = entry.next()) {
    if (!pairs) {  // older folders have a mapping
      targets_.push_back({Pattern(entry.key(), file), read_scheme(entry, file)});
      continue;
    }
    if (!entry.is(Kind::kArray) || entry.size() != 2 || !entry.first().is(Kind::kString))
      wrong(file, "targets are not a list of patterns and schemes");
    if (!patterns.insert(entry.first().string()).second) wrong(file, "a pattern of targets stands twice");
    targets_.push_back({Pattern(entry.first().string(), file), read_scheme(entry.first().next(), file)});
  }
  if (ignore && (!ignore.is(Kind::kArray) || ignore.size() > kMaxPatterns)) wrong(file, "ignore is not a list");
  for (Value entry = ignore ? ignore.first() : Value(); entry; entry = entry.next()) {
    if (!entry.is(Kind::kString)) wrong(file, "ignore is not a list of patterns");
    ignore_.emplace_back(entry.string(), file);
  }
}

const Scheme* Quantization::scheme(std::string_view module, bool embedding) const {
  if (!scheme_) return nullptr;
  for (const Pattern& pattern : ignore_) {
    if (pattern.matches(module)) return nullptr;
  }
  for (const Target& target : targets_) {
    if (target.pattern.matches(module)) return &target.scheme;
  }
  return embedding ? embedding_.get() : scheme_.get();
}

}  // namespace engine
}  // namespace potq
