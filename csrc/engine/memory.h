// Zeroed memory straight from the system: untouched pages cost nothing, so a cache for the whole context grows as it is used.
#pragma once

#include <cstddef>
#include <cstdint>

namespace potq {
namespace engine {

class Memory {
 public:
  Memory() = default;
  // Throws an Error that says what the memory was for. `huge`: weights, whose addresses are translated all the time.
  Memory(size_t bytes, const char* purpose, bool huge);
  ~Memory();
  Memory(Memory&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr; }
  Memory& operator=(Memory&& other) noexcept;

  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

// Cuts memory into parts of 64-byte aligned bytes. The first pass, without memory, only counts; it throws on overflow.
class Parts {
 public:
  explicit Parts(uint8_t* memory) : memory_(memory) {}
  template <class T>
  T* take(size_t count) {
    return reinterpret_cast<T*>(bytes(count, sizeof(T)));
  }
  size_t used() const { return used_; }

 private:
  uint8_t* bytes(size_t count, size_t size);
  uint8_t* memory_;
  size_t used_ = 0;
};

}  // namespace engine
}  // namespace potq
