// quantization_config: which module of a checkpoint has which format. The counterpart of src/potq/scheme.py and grid.py.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"
#include "pattern.h"

namespace potq {
namespace engine {

struct Scheme {
  enum Grouping : uint8_t { kGroups, kRow, kTensor };
  int bits = 0;                 // of the grid
  std::vector<int64_t> levels;  // by code; with a trellis ascending
  std::vector<uint8_t> unused;  // by code: 1 if no file may have it
  bool twos_complement = false;
  int reference_log2 = 0;
  Grouping grouping = kGroups;
  int64_t group = 0;  // kGroups
  bool e8m0 = false, row_scale = false, signed_scale = false, trellis = false;

  int code_bits() const { return bits - trellis; }  // as stored
  bool fits_int8() const;
};

class Quantization {
 public:
  Quantization() = default;  // nothing is quantized
  Quantization(const Value& config, const std::string& file);

  // The scheme of a module, or null: full precision. `embedding`: embeddings and heads.
  const Scheme* scheme(std::string_view module, bool embedding) const;

 private:
  struct Target {
    Pattern pattern;
    Scheme scheme;
  };
  std::vector<Target> targets_;
  std::vector<Pattern> ignore_;
  std::unique_ptr<Scheme> scheme_, embedding_;
};

}  // namespace engine
}  // namespace potq
