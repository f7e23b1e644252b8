// The families of models that the engine knows, in the terms of config.h's block.
#pragma once

#include "config.h"
#include "config_reader.h"

namespace potq {
namespace engine {

constexpr int64_t kMaxSize = 1 << 22;  // of any dimension; tensors must have them, so a file bounds them further

// Everything of config.json but the end tokens; config->model_type says whose. Throws an Error that names the key.
void read_family(const Reader& reader, Config* config);

}  // namespace engine
}  // namespace potq
