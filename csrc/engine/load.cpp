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

// Tensors that hold a weight.
struct Weight {
  std::string name;
  int rows = 0, columns = 0;
  const Tensor *codes = nullptr, *scale = nullptr, *row_scale = nullptr;  // codes: the weight itself where not quantized
  const Scheme* scheme = nullptr;
  bool transposed = false;
  int64_t group = 0, groups = 0, row_bytes = 0;
};

// Where a matrix comes from: rows of a weight, from the first on.
struct Source : Weight {
  Matrix* matrix = nullptr;
  int first = 0;
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

  Tensor& take(const std::string& name, const std::vector<int64_t>& shape, const char* dtypes) {
    Tensor* tensor = find(name);
    if (!tensor)
      fail("%s: the weights have no %s, which config.json asks for; the folder is incomplete, or config.json another model's",
           document_.file().c_str(), name.c_str());
    if (tensor->shape != shape || !std::strstr(dtypes, tensor->dtype_name.c_str()))
      fail("%s: %s is %s %s, expected %s %s; config.json and the weights do not belong together", tensor->file->path().c_str(),
           name.c_str(), tensor->dtype_name.c_str(), shape_text(tensor->shape).c_str(), dtypes, shape_text(shape).c_str());
    if (tensor->used) damaged(*tensor, name, "used twice");
    tensor->used = true;
    return *tensor;
  }

  // `count` numbers, from the first on.
  static std::vector<float> read_floats(const Tensor& tensor, const std::string& name, size_t first, size_t count) {
    std::vector<float> values(count);
    std::vector<uint16_t> halves(tensor.dtype == Dtype::kFloat32 ? 0 : count);
    if (tensor.dtype == Dtype::kFloat32) {
      tensor.file->read(tensor.offset + first * 4, values.data(), count * 4);
    } else {
      tensor.file->read(tensor.offset + first * 2, halves.data(), count * 2);
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
    return read_floats(tensor, name, 0, size_t(count));
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
    if (c.sparse[size_t(index)])
      describe_experts(&layer.experts, prefix);
    else
      describe_mlp(&layer, prefix);
    read_norm(&layer.mlp_post_norm, prefix, names.mlp_post_norm);
    scale_residual(&layer.o), scale_residual(&layer.down);
  }

  void describe_mlp(Layer* layer, const std::string& prefix) {
    const Config& c = model_.config;
    const Names& names = *c.names;
    if (names.fused_gate_up) {  // halves of one weight
      const Weight weight = take_weight(prefix + names.fused_gate_up, 2 * c.intermediate, c.hidden);
      cut(&add(layer->gate), weight, 0, c.intermediate);
      cut(&layer->up, weight, c.intermediate, c.intermediate);
    } else {
      if (names.gate) describe(&add(layer->gate), prefix + names.gate, c.intermediate, c.hidden, c.mlp_bias);
      describe(&layer->up, prefix + names.up, c.intermediate, c.hidden, c.mlp_bias);
    }
    describe(&layer->down, prefix + names.down, c.hidden, c.intermediate, c.mlp_bias);
  }

  // Packed experts are stacks, each rows of one weight; others are tensors of their own.
  void describe_experts(Experts* experts, const std::string& prefix) {
    const Config& c = model_.config;
    const Names& names = *c.names;
    const int count = c.mixture.experts, inner = c.mixture.intermediate;
    const std::string own = prefix + names.experts, seen = prefix + names.seen_experts;
    describe_float(&experts->router, prefix + names.router, count, c.hidden);
    if (has(own + "stacked_gate_up_proj")) {  // an expert's gate, then its up
      const Weight stack = take_weight(own + "stacked_gate_up_proj", 2 * count * inner, c.hidden, false, seen + "gate_up_proj");
      cut_each(&experts->gate, stack, 0, 2 * inner, inner);
      cut_each(&experts->up, stack, inner, 2 * inner, inner);
    } else {
      describe_each(&experts->gate, own, names.expert_gate, inner, c.hidden);
      describe_each(&experts->up, own, names.expert_up, inner, c.hidden);
    }
    if (has(own + "stacked_down_proj"))
      cut_each(&experts->down, take_weight(own + "stacked_down_proj", count * c.hidden, inner, false, seen + "down_proj"), 0,
               c.hidden, c.hidden);
    else
      describe_each(&experts->down, own, names.expert_down, c.hidden, inner);
    for (Matrix& matrix : experts->down) scale_residual(&matrix);
  }

  // A matrix for each expert: `rows` rows of a stack, `step` from one to the next.
  void cut_each(std::vector<Matrix>* matrices, const Weight& stack, int first, int step, int rows) {
    matrices->resize(size_t(model_.config.mixture.experts));
    for (Matrix& matrix : *matrices) {
      cut(&matrix, stack, first, rows);
      first += step;
    }
  }

  void describe_each(std::vector<Matrix>* matrices, const std::string& prefix, const char* name, int rows, int columns) {
    matrices->resize(size_t(model_.config.mixture.experts));
    int expert = 0;
    for (Matrix& matrix : *matrices) describe_float(&matrix, prefix + std::to_string(expert++) + "." + name, rows, columns);
  }

  // What is never packed: routers, and experts that are no stack.
  void describe_float(Matrix* matrix, const std::string& name, int rows, int columns) {
    Weight weight;
    weight.name = name, weight.rows = rows, weight.columns = columns;
    take_float(&weight, false);
    cut(matrix, weight, 0, rows);
  }

  void describe(Matrix* matrix, const std::string& name, int rows, int columns, bool bias, bool embedding = false) {
    cut(matrix, take_weight(name, rows, columns, embedding), 0, rows);
    if (bias) matrix->bias = read_vector(name + ".bias", rows);
  }

  // `seen`: what patterns call it, if not by its name.
  Weight take_weight(const std::string& name, int rows, int columns, bool embedding = false, const std::string& seen = "") {
    Weight weight;
    weight.name = name, weight.rows = rows, weight.columns = columns;
    if (find(name + ".weight_packed"))
      take_packed(&weight, quantization_.scheme(seen.empty() ? name : seen, embedding));
    else
      take_float(&weight, embedding);
    return weight;
  }

  void take_float(Weight* weight, bool embedding) {
    weight->transposed = model_.config.transposed && !embedding;
    std::vector<int64_t> shape{weight->rows, weight->columns};
    if (weight->transposed) std::swap(shape[0], shape[1]);
    weight->codes = &take(weight->name + ".weight", shape, kFloats);
  }

  void take_packed(Weight* weight, const Scheme* scheme) {
    const std::string& name = weight->name;
    weight->scheme = scheme;
    if (!scheme)
      fail(
          "%s: the weights have %s.weight_packed, but quantization_config leaves %s in full precision; config.json and the "
          "weights do not belong together",
          document_.file().c_str(), name.c_str(), name.c_str());
    for (const int width : plane_widths(scheme->code_bits())) weight->row_bytes += plane_bytes(weight->columns, width);
    weight->group = scheme->grouping == Scheme::kGroups ? std::min<int64_t>(scheme->group, weight->columns) : weight->columns;
    weight->groups = (weight->columns + weight->group - 1) / weight->group;
    weight->codes = &take(name + ".weight_packed", {weight->rows, weight->row_bytes}, "U8");
    const int64_t scale_rows = scheme->grouping == Scheme::kTensor ? 1 : weight->rows;
    weight->scale = &take(name + ".weight_scale", {scale_rows, weight->groups}, scheme->e8m0 ? "U8" : "F16");
    if (scheme->row_scale) weight->row_scale = &take(name + ".weight_row_scale", {weight->rows, 1}, "F16");
  }

  // `rows` rows of the weight, from the first on.
  void cut(Matrix* matrix, const Weight& weight, int first, int rows) {
    Source source;
    static_cast<Weight&>(source) = weight;
    source.matrix = matrix, source.first = first;
    matrix->rows = rows, matrix->columns = weight.columns;
    if (weight.row_scale) matrix->row_scale = read_row_scale(weight, first, rows);
    if (weight.scheme) matrix->format = format_of(source);
    matrix->type = type_of(source);
    sources_.push_back(source);
  }

  static std::vector<float> read_row_scale(const Weight& weight, int first, int rows) {
    const std::string name = weight.name + ".weight_row_scale";
    std::vector<float> scale = read_floats(*weight.row_scale, name, size_t(first), size_t(rows));
    for (const float value : scale) {
      if (value < 0) damaged(*weight.row_scale, name, "has a negative scale");
    }
    return scale;
  }

  // What the kernels do not know is dequantized.
  static Matrix::Type type_of(const Source& source) {
    if (const Scheme* scheme = source.scheme) {
      const bool tables = scheme->bits <= 4 || (scheme->bits == 8 && scheme->twos_complement);
      const bool known = tables && scheme->fits_int8() && !potq_unsupported(&source.matrix->format);
      return known ? Matrix::kPacked : Matrix::kFloat32;
    }
    const Dtype dtype = source.codes->dtype;
    return dtype == Dtype::kFloat32 ? Matrix::kFloat32 : dtype == Dtype::kFloat16 ? Matrix::kFloat16 : Matrix::kBFloat16;
  }

  static potq_format format_of(const Source& source) {
    const Scheme& scheme = *source.scheme;
    potq_format format = {};
    format.rows = source.matrix->rows, format.columns = source.matrix->columns;
    format.bits = scheme.code_bits(), format.trellis = scheme.trellis;
    format.group = int32_t(source.group);
    format.scale_rows = scheme.grouping == Scheme::kTensor ? 1 : format.rows;
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
