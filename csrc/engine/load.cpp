// Tensors to matrices. Two passes: first every matrix is described and checked against the headers, then one piece of memory is
// taken for all of them and filled by all threads, from the file through small buffers: no tensor is in memory twice.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>

#include "../kernels/layout.h"
#include "../numbers.h"
#include "../trellis.h"
#include "error.h"
#include "model.h"
#include "safetensors.h"
#include "scheme.h"

namespace potq {
namespace engine {
namespace {

constexpr size_t kBufferBytes = 256 << 10;

// Where a matrix comes from.
struct Source {
  Matrix* matrix;
  std::string name;
  const Tensor *codes = nullptr, *scale = nullptr;  // codes: of the weight itself where it is not quantized
  const Scheme* scheme = nullptr;
  bool transposed = false;
  int first = 0, all = 0;  // the matrix is the rows from the first on, of all that the tensor has
  int64_t group = 0, groups = 0, row_bytes = 0;
  uint8_t* to = nullptr;
};

// Widths of the bit planes a row of codes is stored as (src/potq/packing.py).
std::vector<int> plane_widths(int bits) {
  std::vector<int> widths{bits == 8 ? 8 : bits >= 4 ? 4 : 2};
  widths.resize(size_t(1 + bits - widths[0]), 1);
  return widths;
}

int64_t plane_bytes(int64_t columns, int width) { return (columns * width + 7) / 8; }

[[noreturn]] void damaged(const Tensor& tensor, const std::string& name, const char* what) {
  fail("%s: %s: %s; the file is damaged, copy or quantize it again", tensor.file->path().c_str(), name.c_str(), what);
}

class Loader {
 public:
  Loader(const std::string& folder, Pool& pool)
      : document_(folder + "/config.json", config_text(folder), kMaxConfigValues),
        quantization_(document_.root()["quantization_config"], document_.file()),
        tensors_(folder),
        pool_(pool) {
    model_.config = read_config(document_);
    const std::string generation = folder + "/generation_config.json";
    if (exists(generation))
      read_generation_config(Document(generation, read_text(generation, kMaxConfigBytes), kMaxConfigValues), &model_.config);
  }

  Model run() {
    const Config& c = model_.config;
    // the first GPT-2 checkpoints are of the model without its head
    stripped_ = c.model_type == "gpt2" && !find("transformer.wte.weight") && !find("transformer.wte.weight_packed");
    // a tied weight is stored under either name
    const bool under_head = c.tied && !has(c.names->embedding) && has(c.names->head);
    describe(&model_.embedding, under_head ? c.names->head : c.names->embedding, c.vocabulary, c.hidden, false, true);
    if (c.names->positions) describe(&add(model_.positions), c.names->positions, c.positions, c.hidden, false, true);
    model_.layers.resize(size_t(c.layers));
    for (int i = 0; i < c.layers; i++) describe_layer(i);
    read_norm(&model_.final_norm, "", c.names->final_norm);
    for (float& weight : model_.final_norm.weight) weight *= c.logits_scale;
    const bool own = !under_head && has(c.names->head);
    if (own) describe(&add(model_.own_head), c.names->head, c.vocabulary, c.hidden, false, true);
    if (!own && !c.tied)
      fail("%s: the weights have no %s, and tie_word_embeddings is not set; the folder is incomplete", document_.file().c_str(),
           c.names->head);
    check_all_used();
    allocate();
    fill();
    return std::move(model_);
  }

 private:
  static Matrix& add(std::vector<Matrix>& matrices) {
    matrices.reserve(3);  // descriptions point to them
    matrices.emplace_back();
    return matrices.back();
  }

  std::string file_name(const std::string& name) const {
    return stripped_ && name.compare(0, 12, "transformer.") == 0 ? name.substr(12) : name;
  }
  Tensor* find(const std::string& name) { return tensors_.find(file_name(name)); }
  bool has(const std::string& module) { return find(module + ".weight") || find(module + ".weight_packed"); }

  // `first`: of the rows that are taken. A part behind the first takes the same tensor again.
  Tensor& take(const std::string& name, const std::vector<int64_t>& shape, const char* dtypes, int first = 0) {
    Tensor* tensor = find(name);
    if (!tensor)
      fail("%s: the weights have no %s, which config.json asks for; the folder is incomplete, or config.json another model's",
           document_.file().c_str(), name.c_str());
    if (tensor->shape != shape || !std::strstr(dtypes, tensor->dtype_name.c_str()))
      fail("%s: %s is %s %s, expected %s %s; config.json and the weights do not belong together", tensor->file->path().c_str(),
           name.c_str(), tensor->dtype_name.c_str(), shape_text(tensor->shape).c_str(), dtypes, shape_text(shape).c_str());
    if (tensor->used && !first) damaged(*tensor, name, "used twice");
    tensor->used = true;
    return *tensor;
  }

  std::vector<float> read_floats(const Tensor& tensor, const std::string& name, size_t count) {
    std::vector<float> values(count);
    std::vector<uint16_t> halves(tensor.dtype == Dtype::kFloat32 ? 0 : count);
    if (tensor.dtype == Dtype::kFloat32) {
      tensor.file->read(tensor.offset, values.data(), count * 4);
    } else {
      tensor.file->read(tensor.offset, halves.data(), count * 2);
      for (size_t i = 0; i < count; i++)
        values[i] = tensor.dtype == Dtype::kFloat16 ? from_float16(halves[i]) : from_bfloat16(halves[i]);
    }
    for (const float value : values) {
      if (!std::isfinite(value)) damaged(tensor, name, "has an infinity or NaN");
    }
    return values;
  }

  std::vector<float> read_vector(const std::string& name, int64_t count) {
    const Tensor& tensor = take(name, {count}, kFloats);
    return read_floats(tensor, name, size_t(count));
  }

  std::vector<float> read_norm_weight(const std::string& module, int64_t count) {
    std::vector<float> weight = read_vector(module + ".weight", count);
    for (float& value : weight) value += model_.config.norm_plus_one ? 1.0f : 0.0f;
    return weight;
  }

  // `module` null: the family has none.
  void read_norm(Norm* norm, const std::string& prefix, const char* module) {
    if (!module) return;
    norm->weight = read_norm_weight(prefix + module, model_.config.hidden);
    if (!model_.config.rms) norm->bias = read_vector(prefix + module + ".bias", model_.config.hidden);
  }

  // What is added to the residual stream.
  void scale_residual(Matrix* matrix) {
    const float scale = model_.config.residual_scale;
    if (scale == 1) return;
    matrix->row_scale.resize(size_t(matrix->rows), 1.0f);
    for (float& value : matrix->row_scale) value *= scale;
    for (float& value : matrix->bias) value *= scale;
  }

  void describe_layer(int index) {
    const Config& c = model_.config;
    const Names& names = *c.names;
    Layer& layer = model_.layers[size_t(index)];
    const std::string prefix = names.layer + std::to_string(index) + ".";
    const int q = c.query_size(), kv = c.kv_size();
    read_norm(&layer.attention_norm, prefix, names.attention_norm);
    if (names.fused_qkv) {
      describe(&add(layer.qkv), prefix + names.fused_qkv, q + 2 * kv, c.hidden, c.qkv_bias);
    } else {
      describe(&add(layer.qkv), prefix + names.q, q, c.hidden, c.qkv_bias);
      describe(&add(layer.qkv), prefix + names.k, kv, c.hidden, c.qkv_bias);
      describe(&add(layer.qkv), prefix + names.v, kv, c.hidden, c.qkv_bias);
    }
    if (names.q_norm) layer.q_norm = read_norm_weight(prefix + names.q_norm, c.whole_norms ? q : c.head_size);
    if (names.k_norm) layer.k_norm = read_norm_weight(prefix + names.k_norm, c.whole_norms ? kv : c.head_size);
    describe(&layer.o, prefix + names.o, c.hidden, q, c.o_bias);
    read_norm(&layer.attention_post_norm, prefix, names.attention_post_norm);
    read_norm(&layer.mlp_norm, prefix, names.mlp_norm);
    if (names.fused_gate_up) {  // halves of one tensor
      describe_part(&add(layer.gate), prefix + names.fused_gate_up, 0, c.intermediate, 2 * c.intermediate, c.hidden);
      describe_part(&layer.up, prefix + names.fused_gate_up, c.intermediate, c.intermediate, 2 * c.intermediate, c.hidden);
    } else {
      if (names.gate) describe(&add(layer.gate), prefix + names.gate, c.intermediate, c.hidden, c.mlp_bias);
      describe(&layer.up, prefix + names.up, c.intermediate, c.hidden, c.mlp_bias);
    }
    describe(&layer.down, prefix + names.down, c.hidden, c.intermediate, c.mlp_bias);
    read_norm(&layer.mlp_post_norm, prefix, names.mlp_post_norm);
    scale_residual(&layer.o), scale_residual(&layer.down);
  }

  void describe(Matrix* matrix, const std::string& name, int rows, int columns, bool bias, bool embedding = false) {
    describe_part(matrix, name, 0, rows, rows, columns, embedding);
    if (bias) matrix->bias = read_vector(name + ".bias", rows);
  }

  // `rows` rows, from the first on, of a tensor that has `all`.
  void describe_part(Matrix* matrix, const std::string& name, int first, int rows, int all, int columns,
                     bool embedding = false) {
    matrix->rows = rows, matrix->columns = columns;
    Source source;
    source.matrix = matrix, source.name = name, source.first = first, source.all = all;
    if (find(name + ".weight_packed"))
      describe_packed(&source, embedding);
    else
      describe_floats(&source, embedding);
    sources_.push_back(source);
  }

  void describe_floats(Source* source, bool embedding) {
    Matrix& m = *source->matrix;
    source->transposed = model_.config.transposed && !embedding;
    std::vector<int64_t> shape{source->all, m.columns};
    if (source->transposed) std::swap(shape[0], shape[1]);
    source->codes = &take(source->name + ".weight", shape, kFloats, source->first);
    m.type = source->codes->dtype == Dtype::kFloat32   ? Matrix::kFloat32
             : source->codes->dtype == Dtype::kFloat16 ? Matrix::kFloat16
                                                       : Matrix::kBFloat16;
  }

  void describe_packed(Source* source, bool embedding) {
    Matrix& m = *source->matrix;
    const std::string& name = source->name;
    const Scheme* scheme = source->scheme = quantization_.scheme(name, embedding);
    if (!scheme)
      fail(
          "%s: the weights have %s.weight_packed, but quantization_config leaves %s in full precision; config.json and the "
          "weights do not belong together",
          document_.file().c_str(), name.c_str(), name.c_str());
    for (const int width : plane_widths(scheme->code_bits())) source->row_bytes += plane_bytes(m.columns, width);
    source->group = scheme->grouping == Scheme::kGroups ? std::min<int64_t>(scheme->group, m.columns) : m.columns;
    source->groups = (m.columns + source->group - 1) / source->group;
    source->codes = &take(name + ".weight_packed", {source->all, source->row_bytes}, "U8", source->first);
    const int64_t scale_rows = scheme->grouping == Scheme::kTensor ? 1 : source->all;
    source->scale = &take(name + ".weight_scale", {scale_rows, source->groups}, scheme->e8m0 ? "U8" : "F16", source->first);
    if (scheme->row_scale) {
      const Tensor& tensor = take(name + ".weight_row_scale", {source->all, 1}, "F16", source->first);
      m.row_scale = read_floats(tensor, name + ".weight_row_scale", size_t(source->all));
      m.row_scale.erase(m.row_scale.begin(), m.row_scale.begin() + source->first);
      m.row_scale.resize(size_t(m.rows));
      for (const float value : m.row_scale) {
        if (value < 0) damaged(tensor, name + ".weight_row_scale", "has a negative scale");
      }
    }
    m.format = format_of(*source, scheme->grouping == Scheme::kTensor ? 1 : m.rows);
    const bool tables = scheme->bits <= 4 || (scheme->bits == 8 && scheme->twos_complement);
    // what the kernels do not know is dequantized
    m.type = tables && scheme->fits_int8() && !potq_unsupported(&m.format) ? Matrix::kPacked : Matrix::kFloat32;
  }

  static potq_format format_of(const Source& source, int scale_rows) {
    const Scheme& scheme = *source.scheme;
    potq_format format = {};
    format.rows = source.matrix->rows, format.columns = source.matrix->columns;
    format.bits = scheme.code_bits(), format.trellis = scheme.trellis;
    format.group = int32_t(source.group), format.scale_rows = scale_rows;
    format.scale_format = scheme.e8m0 ? POTQ_SCALE_E8M0 : POTQ_SCALE_FLOAT16;
    format.reference_log2 = scheme.reference_log2;
    for (size_t code = 0; code < scheme.levels.size() && code < 16; code++) format.levels[code] = int8_t(scheme.levels[code]);
    return format;
  }

  void check_all_used() {
    for (const auto& entry : tensors_.all()) {
      const std::string& name = entry.first;
      const auto ends = [&](const std::string& end) {
        return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
      };
      // buffers that old checkpoints carry and transformers drops
      if (entry.second.used || ends("rotary_emb.inv_freq") ||
          (stripped_ || model_.config.model_type == "gpt2" ? ends(".attn.bias") || ends(".attn.masked_bias") : false))
        continue;
      fail("%s has the tensor %s, which config.json does not explain; config.json and the weights do not belong together",
           entry.second.file->path().c_str(), quoted(name).c_str());
    }
  }

  static size_t value_bytes(const Matrix& m) { return m.type == Matrix::kFloat32 ? 4 : 2; }

  void lay_out(Parts parts, size_t* bytes) {
    for (Source& source : sources_) {
      const Matrix& m = *source.matrix;
      source.to = m.type == Matrix::kPacked ? parts.take<uint8_t>(potq_tiles_bytes(&m.format))
                                            : parts.take<uint8_t>(size_t(m.rows) * size_t(m.columns) * value_bytes(m));
    }
    *bytes = parts.used();
  }

  void allocate() {
    size_t bytes = 0;
    lay_out(Parts(nullptr), &bytes);
    model_.weights = Memory(bytes, "the weights", true);
    lay_out(Parts(model_.weights.data()), &bytes);
    for (Source& source : sources_) {
      if (source.matrix->type == Matrix::kPacked)
        source.matrix->tiles = source.to;
      else
        source.matrix->values = source.to;
    }
  }

  // ---- filling, by all threads ----

  void fill() {
    pool_.run([](void* self, int) { static_cast<Loader*>(self)->fill_some(); }, this);
    if (!error_.empty()) throw Error(error_);
  }

  void fill_some() {
    try {
      std::vector<uint8_t> buffer;
      int first = 0;  // the number of a source's first task
      int task = pool_.take(1);
      for (const Source& source : sources_) {
        const int step = rows_at_once(source), tasks = (source.matrix->rows + step - 1) / step;
        for (; task < first + tasks; task = pool_.take(1)) {
          if (failed_.load(std::memory_order_relaxed)) return;
          const int row = (task - first) * step;
          fill_rows(source, row, std::min(row + step, source.matrix->rows), &buffer);
        }
        first += tasks;
      }
    } catch (const std::exception& error) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (error_.empty()) error_ = error.what()[0] ? error.what() : "no memory";
      failed_ = true;
    }
  }

  static int rows_at_once(const Source& source) {
    if (source.transposed && !source.scheme) return source.matrix->rows;
    const size_t row = source.scheme ? size_t(source.row_bytes) : size_t(source.matrix->columns) * 4;
    return int(std::max<size_t>(1, std::min<size_t>(kBufferBytes / row / kRows, 1 << 20)) * kRows);
  }

  void fill_rows(const Source& source, int first, int last, std::vector<uint8_t>* buffer) {
    if (source.scheme)
      fill_packed(source, first, last, buffer);
    else if (source.transposed)
      fill_transposed(source, buffer);
    else
      source.codes->file->read(source.codes->offset + uint64_t(source.first + first) * uint64_t(source.matrix->columns) *
                                                          value_bytes(*source.matrix),
                               source.to + size_t(first) * size_t(source.matrix->columns) * value_bytes(*source.matrix),
                               size_t(last - first) * size_t(source.matrix->columns) * value_bytes(*source.matrix));
  }

  static void fill_transposed(const Source& source, std::vector<uint8_t>* buffer) {
    const Matrix& m = *source.matrix;
    const size_t size = value_bytes(m), row = size_t(m.rows) * size;
    buffer->resize(row);
    for (int k = 0; k < m.columns; k++) {
      source.codes->file->read(source.codes->offset + uint64_t(k) * row, buffer->data(), row);
      for (int r = 0; r < m.rows; r++)
        std::memcpy(source.to + (size_t(r) * size_t(m.columns) + size_t(k)) * size, buffer->data() + size_t(r) * size, size);
    }
  }

  void fill_packed(const Source& source, int first, int last, std::vector<uint8_t>* buffer) {
    const Matrix& m = *source.matrix;
    const size_t rows = size_t(last - first), code_bytes = rows * size_t(source.row_bytes);
    const size_t scale_size = source.scheme->e8m0 ? 1 : 2, scale_row = size_t(source.groups) * scale_size;
    const bool shared = m.format.scale_rows == 1 && source.scheme->grouping == Scheme::kTensor;
    const size_t scale_bytes = shared ? scale_row : rows * scale_row, scale_at = round_up(code_bytes, 64);
    buffer->resize(scale_at + scale_bytes);
    uint8_t *codes = buffer->data(), *scale = codes + scale_at;
    const uint64_t row = uint64_t(source.first + first);  // in the tensor
    source.codes->file->read(source.codes->offset + row * uint64_t(source.row_bytes), codes, code_bytes);
    source.scale->file->read(source.scale->offset + (shared ? 0 : row * scale_row), scale, scale_bytes);
    check_scales(source, scale, scale_bytes / scale_size, first);
    check_codes(source, codes, rows);
    if (m.type != Matrix::kPacked) return dequantize(source, codes, scale, shared, first, last);
    potq_format part = m.format;
    part.rows = int32_t(rows), part.scale_rows = shared ? 1 : int32_t(rows);
    const size_t block = potq_tiles_bytes(&m.format) / size_t(potq_row_blocks(&m.format));
    potq_pack(&part, codes, scale, source.to + size_t(first / kRows) * block, 0, potq_row_blocks(&part));
  }

  static float scale_of(const Source& source, const uint8_t* scale, size_t index) {
    if (source.scheme->e8m0) return from_e8m0(scale[index]);
    uint16_t half;
    std::memcpy(&half, scale + index * 2, 2);
    return from_float16(half);
  }

  static void check_scales(const Source& source, const uint8_t* scale, size_t count, int first) {
    const Matrix& m = *source.matrix;
    const double reference = std::ldexp(1.0, source.scheme->reference_log2);
    double largest = 0;
    for (const int64_t level : source.scheme->levels) largest = std::max(largest, std::abs(double(level)) / reference);
    for (size_t i = 0; i < count; i++) {
      const float value = scale_of(source, scale, i);
      if ((source.scheme->e8m0 && scale[i] == 255) || !std::isfinite(value) || (value < 0 && !source.scheme->signed_scale))
        damaged(*source.scale, source.name + ".weight_scale", "has a scale that is negative, infinite or NaN");
      if (!m.row_scale.empty()) {
        const float row = m.row_scale[size_t(first) + i / size_t(source.groups)];
        if (double(value) * double(row) * largest > 3.4028234e38)
          damaged(*source.scale, source.name + ".weight_scale", "has weights beyond float32");
      }
    }
  }

  // Codes that no grid point has, and bits behind a row's last code.
  static void check_codes(const Source& source, const uint8_t* codes, size_t rows) {
    const Scheme& scheme = *source.scheme;
    const int64_t columns = source.matrix->columns;
    const bool some_unused = std::find(scheme.unused.begin(), scheme.unused.end(), 1) != scheme.unused.end();
    const std::vector<int> widths = plane_widths(scheme.code_bits());
    for (size_t r = 0; r < rows; r++) {
      const uint8_t* row = codes + r * size_t(source.row_bytes);
      const uint8_t* plane = row;
      for (const int width : widths) {
        const int used = int(columns * width % 8);
        plane += plane_bytes(columns, width);
        if (used && plane[-1] >> used) damaged(*source.codes, source.name + ".weight_packed", "has bits set behind a row");
      }
      for (int64_t k = 0; some_unused && k < columns; k++) {
        if (scheme.unused[size_t(code_at(widths, row, columns, k))])
          damaged(*source.codes, source.name + ".weight_packed", "has a code outside the grid");
      }
    }
  }

  static int code_at(const std::vector<int>& widths, const uint8_t* row, int64_t columns, int64_t k) {
    int code = 0, shift = 0;
    for (const int width : widths) {
      code |= (row[k * width / 8] >> (k * width % 8) & ((1 << width) - 1)) << shift;
      shift += width;
      row += plane_bytes(columns, width);
    }
    return code;
  }

  static void dequantize(const Source& source, const uint8_t* codes, const uint8_t* scale, bool shared, int first, int last) {
    const Scheme& scheme = *source.scheme;
    const std::vector<int> widths = plane_widths(scheme.code_bits());
    const int64_t columns = source.matrix->columns;
    float levels[256];
    for (size_t code = 0; code < scheme.levels.size(); code++)
      levels[code] = std::ldexp(float(scheme.levels[code]), -scheme.reference_log2);
    for (int r = first; r < last; r++) {
      const uint8_t* row = codes + size_t(r - first) * size_t(source.row_bytes);
      float* to = reinterpret_cast<float*>(source.to) + size_t(r) * size_t(columns);
      Path path;
      for (int64_t k = 0; k < columns; k++) {
        const size_t group = size_t(k / source.group) + (shared ? 0 : size_t(r - first) * size_t(source.groups));
        const int code = code_at(widths, row, columns, k);
        to[k] = scale_of(source, scale, group) * levels[scheme.trellis ? path.level(code) : code];
      }
    }
  }

  static std::string config_text(const std::string& folder) {
    refuse_adapter(folder);  // before the lack of a config.json, which a folder of an adapter alone does not have
    return read_text(folder + "/config.json", kMaxConfigBytes);
  }

  static constexpr const char* kFloats = "F32, F16 or BF16";

  const Document document_;
  const Quantization quantization_;
  Tensors tensors_;
  Pool& pool_;
  Model model_;
  bool stripped_ = false;
  std::vector<Source> sources_;
  std::mutex mutex_;
  std::string error_;
  std::atomic<bool> failed_{false};
};

}  // namespace

Model load_model(const std::string& folder, Pool& pool) { return Loader(folder, pool).run(); }

}  // namespace engine
}  // namespace potq
