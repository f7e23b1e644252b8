// What the kernels must compute, written a second time from the description in potq.h and docs/kernels.md: naive, slow, without
// a line of the kernels. Every float operation is one IEEE operation in single precision; no expression here is a product and a
// sum, so that a compiler that contracts them changes nothing.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../potq.h"

namespace oracle {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float power_of_two(int exponent) { return std::ldexp(1.0f, exponent); }

inline float from_bfloat16(uint16_t stored) { return float_of(uint32_t(stored) << 16); }

inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  if (std::isnan(value)) return 0x7fc0;
  const uint32_t half_up = bits + 0x8000u;
  const bool tie = (bits & 0xffffu) == 0x8000u;
  return uint16_t((tie ? half_up & ~0x10000u : half_up) >> 16);
}

inline float from_float16(uint16_t stored) {
  const int exponent = stored >> 10 & 31, mantissa = stored & 1023;
  const float magnitude = exponent ? std::ldexp(float(1024 + mantissa), exponent - 25) : std::ldexp(float(mantissa), -24);
  return stored & 0x8000 ? -magnitude : magnitude;
}

// One element of a tensor of either dtype.
inline float load(const void* from, size_t index, int dtype) {
  if (dtype == POTQ_FLOAT32) {
    float value;
    std::memcpy(&value, static_cast<const char*>(from) + index * 4, 4);
    return value;
  }
  uint16_t stored;
  std::memcpy(&stored, static_cast<const char*>(from) + index * 2, 2);
  return from_bfloat16(stored);
}

inline void store(void* to, size_t index, int dtype, float value) {
  if (dtype == POTQ_FLOAT32) {
    std::memcpy(static_cast<char*>(to) + index * 4, &value, 4);
    return;
  }
  const uint16_t stored = to_bfloat16(value);
  std::memcpy(static_cast<char*>(to) + index * 2, &stored, 2);
}

inline float rounded_to(int dtype, float value) { return dtype == POTQ_FLOAT32 ? value : from_bfloat16(to_bfloat16(value)); }

inline bool one_group(const potq_format& format) { return format.group >= format.columns; }

inline int groups(const potq_format& format) {
  return one_group(format) ? 1 : format.columns / format.group + (format.columns % format.group != 0);
}

// Columns that share an activation scale.
inline int block_columns(const potq_format& format) {
  if (one_group(format)) return 64;
  for (const int size : {64, 48, 32}) {
    if (format.group % size == 0) return size;
  }
  return 16;
}

inline int level(const potq_format& format, uint8_t code) { return format.bits == 8 ? int8_t(code) : format.levels[code]; }

// The level of a column of a row, of whose codes none behind it is looked at.
inline int level_in_row(const potq_format& format, const uint8_t* row, int column) {
  if (!format.trellis) return level(format, row[column]);
  const auto path = [=](int back) { return column >= back && row[column - back] % 2; };
  const bool high = path(0) != (path(2) != path(3));
  return format.levels[row[column] / 2 * 4 + high * 2 + path(1)];
}

// A weight with one code a byte.
struct Weight {
  potq_format format;
  std::vector<uint8_t> codes;
  std::vector<uint8_t> scale;  // the stored tensor's bytes

  int level_at(int row, int column) const { return level_in_row(format, &codes[size_t(row) * size_t(format.columns)], column); }

  float scale_at(int row, int column) const {
    const int group = one_group(format) ? 0 : column / format.group;
    const size_t index = size_t(format.scale_rows == 1 ? 0 : row) * size_t(groups(format)) + size_t(group);
    if (format.scale_format == POTQ_SCALE_E8M0) return power_of_two(scale[index] - 127);
    uint16_t stored;
    std::memcpy(&stored, &scale[index * 2], 2);
    return from_float16(stored);
  }
};

inline std::vector<int> plane_widths(int bits) { return bits == 3 ? std::vector<int>{2, 1} : std::vector<int>{bits}; }

// The canonical layout: per row its planes, each padded to a byte, lowest code and lowest bit first.
inline std::vector<uint8_t> pack(const Weight& weight) {
  const size_t columns = size_t(weight.format.columns);
  std::vector<uint8_t> packed;
  for (int row = 0; row < weight.format.rows; row++) {
    int shift = 0;
    for (const int width : plane_widths(weight.format.bits)) {
      const size_t start = packed.size();
      packed.resize(start + (columns * size_t(width) + 7) / 8);
      for (size_t column = 0; column < columns; column++) {
        const int code = weight.codes[size_t(row) * columns + column] >> shift & ((1 << width) - 1);
        const size_t bit = column * size_t(width);
        packed[start + bit / 8] = uint8_t(packed[start + bit / 8] | code << bit % 8);
      }
      shift += width;
    }
  }
  return packed;
}

// Below this mean square of its int8 integers (padding columns count, as zeros), a block is rounded finer.
constexpr int kOutlier = 645;

// One row of activations as integers, with a scale per block: int8, or 254 times finer.
struct Rounded {
  std::vector<int> values;
  std::vector<float> scales;
};

inline float largest_magnitude(const float* x, int count) {
  float largest = 0;
  for (int i = 0; i < count; i++) {
    if (std::isnan(x[i])) return x[i];
    if (std::fabs(x[i]) > largest) largest = std::fabs(x[i]);
  }
  return largest;
}

// Integers of `count` finite columns; returns what the largest magnitude is divided by for the scale.
inline float round_block(const float* x, int count, int block, float largest, int* values) {
  const float steps = 127.0f / largest;
  int squares = 0;
  for (int i = 0; i < count; i++) {
    values[i] = int(std::nearbyint(x[i] * steps));
    squares += values[i] * values[i];
  }
  if (squares >= kOutlier * block) return 127.0f;
  for (int i = 0; i < count; i++) {
    const float scaled = x[i] * steps, rest = scaled - std::nearbyint(scaled);
    values[i] = 254 * values[i] + int(std::nearbyint(rest * 254.0f));
  }
  return 32258.0f;
}

inline Rounded round_activations(const potq_format& format, const float* x) {
  const int block = block_columns(format);
  Rounded result{std::vector<int>(size_t(format.columns)), {}};
  for (int start = 0; start < format.columns; start += block) {
    const int count = format.columns - start < block ? format.columns - start : block;
    const float largest = largest_magnitude(x + start, count);
    if (!std::isfinite(largest)) {
      result.scales.push_back(std::nanf(""));
    } else if (largest < 0x1p-120f) {
      result.scales.push_back(0);
    } else {
      const float divisor = round_block(x + start, count, block, largest, &result.values[size_t(start)]);
      const float step = largest * (1.0f / divisor);
      result.scales.push_back(step * power_of_two(-format.reference_log2));
    }
  }
  return result;
}

inline float row_product_int8(const Weight& weight, const int8_t* levels, int row, const Rounded& x, float y) {
  const int block = block_columns(weight.format), columns = weight.format.columns;
  for (int start = 0, b = 0; start < columns; start += block, b++) {
    int32_t sum = 0;
    for (int k = start; k < start + block && k < columns; k++) sum += levels[k] * x.values[size_t(k)];
    const float scale = weight.scale_at(row, start) * x.scales[size_t(b)];
    y = std::fma(float(sum), scale, y);
  }
  return y;
}

inline float row_product_float(const Weight& weight, const int8_t* levels, int row, const float* x, float y) {
  const int block = block_columns(weight.format), columns = weight.format.columns;
  for (int start = 0; start < columns; start += block) {
    float part[4] = {0, 0, 0, 0};
    for (int k = start; k < start + block && k < columns; k++) part[k % 4] = std::fma(float(levels[k]), x[k], part[k % 4]);
    const float even = part[0] + part[1], odd = part[2] + part[3];
    y = std::fma(even + odd, weight.scale_at(row, start) * power_of_two(-weight.format.reference_log2), y);
  }
  return y;
}

// y = x W^T + bias (m x rows) in single precision; bias may be empty.
inline std::vector<float> multiply(const Weight& weight, const std::vector<float>& x, const std::vector<float>& bias, int m,
                                   int arithmetic) {
  const size_t rows = size_t(weight.format.rows), columns = size_t(weight.format.columns);
  std::vector<int8_t> levels(rows * columns);
  for (size_t i = 0; i < levels.size(); i++) levels[i] = int8_t(weight.level_at(int(i / columns), int(i % columns)));
  std::vector<float> y(size_t(m) * rows);
  for (size_t i = 0; i < size_t(m); i++) {
    const float* xi = &x[i * columns];
    const Rounded rounded = round_activations(weight.format, xi);
    for (size_t r = 0; r < rows; r++) {
      const float start = bias.empty() ? 0.0f : bias[r];
      const int8_t* row_levels = &levels[r * columns];
      y[i * rows + r] = arithmetic == POTQ_INT8 ? row_product_int8(weight, row_levels, int(r), rounded, start)
                                                : row_product_float(weight, row_levels, int(r), xi, start);
    }
  }
  return y;
}

inline float dequantized(const Weight& weight, int row, int column) {
  const float level = float(weight.level_at(row, column)) * power_of_two(-weight.format.reference_log2);
  return weight.scale_at(row, column) * level;
}

}  // namespace oracle
