// How fast the numbers of an attention head turn with the position.
#pragma once

#include <vector>

#include "config_reader.h"

namespace potq {
namespace engine {

// Angles a position, of the pairs of `count` numbers, by the rules in `rope` (rope_parameters, rope_scaling, or null). `theta`:
// the base, where those do not have it. Throws an Error if the engine does not know them.
std::vector<float> read_frequencies(const Reader& reader, const Value& rope, double theta, int count);

}  // namespace engine
}  // namespace potq
