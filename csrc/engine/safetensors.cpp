#include "safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "error.h"
#include "json.h"

namespace potq {
namespace engine {
namespace {

constexpr uint64_t kMaxHeader = 16 << 20;  // bytes: 100,000 tensors
constexpr uint32_t kMaxValues = 2 << 20;
constexpr uint32_t kMaxDimensions = 8;
constexpr uint32_t kMaxShards = 4096;

struct DtypeName {
  const char* name;
  Dtype dtype;
  uint64_t bits;
};
constexpr DtypeName kDtypes[] = {
    {"F32", Dtype::kFloat32, 32}, {"F16", Dtype::kFloat16, 16},  {"BF16", Dtype::kBFloat16, 16}, {"U8", Dtype::kUint8, 8},
    {"F64", Dtype::kOther, 64},   {"I64", Dtype::kOther, 64},    {"U64", Dtype::kOther, 64},     {"I32", Dtype::kOther, 32},
    {"U32", Dtype::kOther, 32},   {"I16", Dtype::kOther, 16},    {"U16", Dtype::kOther, 16},     {"I8", Dtype::kOther, 8},
    {"BOOL", Dtype::kOther, 8},   {"F8_E4M3", Dtype::kOther, 8}, {"F8_E5M2", Dtype::kOther, 8},
};

[[noreturn]] void damaged(const File& file, std::string_view name, const char* what) {
  fail("%s: tensor %s %s; the file is damaged, copy it again", file.path().c_str(), quoted(name).c_str(), what);
}

// One entry of the header; offsets are still relative to the data.
Tensor read_entry(const File& file, const Value& entry, uint64_t data_bytes) {
  const std::string_view name = entry.key();
  const Value dtype = entry["dtype"], shape = entry["shape"], offsets = entry["data_offsets"];
  if (!dtype.is(Kind::kString) || !shape.is(Kind::kArray) || !offsets.is(Kind::kArray) || offsets.size() != 2)
    damaged(file, name, "has no dtype, shape and data_offsets");
  Tensor tensor{&file, Dtype::kOther, std::string(dtype.string()), {}, 0, 0};
  const auto known = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                  [&](const DtypeName& candidate) { return dtype.string() == candidate.name; });
  if (known == std::end(kDtypes)) damaged(file, name, ("has the unknown dtype " + quoted(dtype.string())).c_str());
  tensor.dtype = known->dtype;
  uint64_t bytes = known->bits / 8;
  if (shape.size() > kMaxDimensions) damaged(file, name, "has too many dimensions");
  for (Value size = shape.first(); size; size = size.next()) {
    if (!size.is(Kind::kInteger) || size.integer() < 0) damaged(file, name, "has an invalid shape");
    tensor.shape.push_back(size.integer());
    if (__builtin_mul_overflow(bytes, uint64_t(size.integer()), &bytes)) damaged(file, name, "has a shape that overflows");
  }
  const Value begin = offsets.first(), end = begin.next();
  if (!begin.is(Kind::kInteger) || !end.is(Kind::kInteger) || begin.integer() < 0 || end.integer() < begin.integer())
    damaged(file, name, "has invalid data_offsets");
  if (uint64_t(end.integer()) > data_bytes) damaged(file, name, "ends behind the end of the file (truncated?)");
  tensor.offset = uint64_t(begin.integer()), tensor.bytes = uint64_t(end.integer() - begin.integer());
  if (tensor.bytes != bytes) damaged(file, name, "has data_offsets that do not fit its shape and dtype");
  return tensor;
}

std::vector<std::string> shard_names(const std::string& folder) {
  const std::string index = folder + "/model.safetensors.index.json";
  if (exists(folder + "/model.safetensors")) return {"model.safetensors"};  // before an index, as transformers does
  if (!exists(index))
    fail("%s has no model.safetensors: the folder is incomplete, or no model (pickled .bin weights are never opened)",
         folder.c_str());
  const Document document(index, read_text(index, kMaxHeader), kMaxValues);
  const Value map = document.root()["weight_map"];
  std::set<std::string> names;
  if (!map.is(Kind::kObject)) fail("%s has no weight_map; copy it again", index.c_str());
  for (Value entry = map.first(); entry; entry = entry.next()) {
    const std::string name(entry.is(Kind::kString) ? entry.string() : "");
    // a plain file name: an index must not lead out of its folder
    if (name.empty() || name[0] == '.' || name.find_first_of(std::string("/\\\0", 3)) != std::string::npos)
      fail("%s names %s, which is not in the folder; copy it again", index.c_str(), quoted(name).c_str());
    names.insert(name);
    if (names.size() > kMaxShards) fail("%s names more than %u files; copy it again", index.c_str(), kMaxShards);
  }
  if (names.empty()) fail("%s names no file; copy it again", index.c_str());
  return std::vector<std::string>(names.begin(), names.end());
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

Tensors::Tensors(const std::string& folder) {
  for (const std::string& name : shard_names(folder)) {
    files_.push_back(std::make_unique<File>(folder + "/" + name));
    read_header(*files_.back());
  }
}

void Tensors::read_header(const File& file) {
  uint8_t bytes[8];
  if (file.size() < 8) fail("%s is truncated: it has no header; copy it again", file.path().c_str());
  file.read(0, bytes, 8);
  uint64_t length = 0;
  for (int i = 7; i >= 0; i--) length = length << 8 | bytes[i];
  if (length > file.size() - 8 || length > kMaxHeader)
    fail("%s says that its header has %llu bytes (the file has %llu, a header at most %llu); it is damaged, copy it again",
         file.path().c_str(), static_cast<unsigned long long>(length), static_cast<unsigned long long>(file.size()),
         static_cast<unsigned long long>(kMaxHeader));
  std::string text(size_t(length), '\0');
  file.read(8, &text[0], text.size());
  const Document header(file.path() + "'s header", std::move(text), kMaxValues);
  if (!header.root().is(Kind::kObject)) fail("%s: its header is not a JSON object; copy it again", file.path().c_str());

  const uint64_t start = 8 + length, data_bytes = file.size() - start;
  struct Extent {
    uint64_t begin, end;
    std::string_view name;
  };
  std::vector<Extent> extents;
  for (Value entry = header.root().first(); entry; entry = entry.next()) {
    if (entry.key() == "__metadata__") continue;
    Tensor tensor = read_entry(file, entry, data_bytes);
    extents.push_back({tensor.offset, tensor.offset + tensor.bytes, entry.key()});
    tensor.offset += start;
    if (!tensors_.emplace(std::string(entry.key()), std::move(tensor)).second) damaged(file, entry.key(), "stands twice");
  }
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  uint64_t covered = 0;
  for (const Extent& extent : extents) {
    if (extent.begin < covered) damaged(file, extent.name, "overlaps another");
    if (extent.begin > covered) damaged(file, extent.name, "has a gap before it");
    covered = extent.end;
  }
  if (covered != data_bytes) fail("%s goes on behind its last tensor; it is damaged, copy it again", file.path().c_str());
}

Tensor* Tensors::find(const std::string& name) {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

}  // namespace engine
}  // namespace potq
