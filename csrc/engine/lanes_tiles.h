// Cuts a number of rows or heads into tiles whose size the compiler knows.
#pragma once

#include <type_traits>

namespace potq {
namespace engine {
namespace {

template <int Size, class Part>
inline void tile_of(int size, int first, const Part& part) {
  if (size == Size)
    part(std::integral_constant<int, Size>(), first);
  else if constexpr (Size > 1)
    tile_of<Size - 1>(size, first, part);
}

// Calls part(size of a tile as a type, its first) for as few tiles of up to Most as there can be, of nearly equal sizes.
template <int Most, class Part>
inline void in_tiles(int count, const Part& part) {
  for (int tiles = (count + Most - 1) / Most, first = 0; tiles; tiles--) {
    const int size = (count - first + tiles - 1) / tiles;
    tile_of<Most>(size, first, part);
    first += size;
  }
}

}  // namespace
}  // namespace engine
}  // namespace potq
