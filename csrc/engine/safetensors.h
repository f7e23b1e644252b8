// The tensors of a model folder: model.safetensors, or the shards that model.safetensors.index.json names.
//
// A file is 8 bytes of header length, a JSON header {name: {dtype, shape, data_offsets: [begin, end]}}, and the data. All of it
// is checked before any of it is used: lengths against the file's size, end - begin against shape and dtype without overflow,
// and that the tensors cover the data without gaps and overlaps, as the format demands.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "file.h"

namespace potq {
namespace engine {

enum class Dtype : uint8_t { kFloat32, kFloat16, kBFloat16, kUint8, kOther };

struct Tensor {
  const File* file;
  Dtype dtype;
  std::string dtype_name;  // as the file has it
  std::vector<int64_t> shape;
  uint64_t offset, bytes;  // in the file
  bool used = false;
};

class Tensors {
 public:
  explicit Tensors(const std::string& folder);

  Tensor* find(const std::string& name);  // null: absent
  std::map<std::string, Tensor>& all() { return tensors_; }

 private:
  void read_header(const File& file);

  std::vector<std::unique_ptr<File>> files_;
  std::map<std::string, Tensor> tensors_;
};

std::string shape_text(const std::vector<int64_t>& shape);

}  // namespace engine
}  // namespace potq
