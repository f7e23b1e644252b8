#include "memory.h"

#include <sys/mman.h>

#include <utility>

#include "../potq.h"
#include "error.h"

namespace potq {
namespace engine {

#if !defined(MAP_NORESERVE)
#define MAP_NORESERVE 0
#endif

Memory::Memory(size_t bytes, const char* purpose, bool huge) : bytes_(bytes) {
  if (!bytes) return;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fail("no memory for %s: %zu MB", purpose, bytes >> 20);
  data_ = static_cast<uint8_t*>(memory);
  if (huge) potq_advise_huge_pages(data_, bytes);
}

Memory::~Memory() {
  if (data_) munmap(data_, bytes_);
}

Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

uint8_t* Parts::bytes(size_t count, size_t size) {
  uint8_t* part = memory_ ? memory_ + used_ : nullptr;
  size_t bytes;
  if (__builtin_mul_overflow(count, size, &bytes) || bytes > PTRDIFF_MAX - 64 ||
      __builtin_add_overflow(used_, (bytes + 63) / 64 * 64, &used_) || used_ > PTRDIFF_MAX)
    fail("the model needs more memory than there are addresses; its config.json is damaged, or pass a smaller context");
  return part;
}

}  // namespace engine
}  // namespace potq
