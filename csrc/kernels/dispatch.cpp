// Which instruction sets were compiled in, which the CPU has, and the thread-free functions that use them.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../potq.h"
#include "layout.h"
#include "table.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if defined(POTQ_X86)
#include <cpuid.h>
#endif

namespace potq {
namespace {

bool always() { return true; }

#if defined(POTQ_X86)
// Clang before 15 does not know __builtin_cpu_supports("f16c").
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }
bool has_avx512vnni() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
// AVX-VNNI is an encoding of its own; __builtin_cpu_supports learned it late
#if defined(POTQ_AVXVNNI)
bool has_vex_vnni() {
  unsigned a, b, c, d;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
}
const Kernels* avxvnni() { return has_vex_vnni() ? &kAvxVnni : &kAvxVnniEvex; }
#else
bool has_vex_vnni() { return false; }
const Kernels* avxvnni() { return &kAvxVnniEvex; }
#endif
bool has_avxvnni() { return has_vex_vnni() || has_avx512vnni(); }
#endif

#if defined(POTQ_ARM64)
bool has_dotprod() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & (1ul << 20);  // HWCAP_ASIMDDP
#else
  return true;  // every Apple computer
#endif
}
#if defined(POTQ_I8MM)
bool has_i8mm() {
#if defined(__linux__)
  return has_dotprod() && getauxval(AT_HWCAP2) & (1ul << 13);  // HWCAP2_I8MM
#elif defined(__APPLE__)
  int32_t found = 0;
  size_t bytes = sizeof found;
  return !sysctlbyname("hw.optional.arm.FEAT_I8MM", &found, &bytes, nullptr, 0) && found;
#else
  return false;
#endif
}
#endif
#endif

struct Isa {
  const char* name;
  const Kernels* kernels;  // null: not compiled in
  bool (*supported)();
};

const Isa kIsas[] = {
    {"scalar", &kScalar, always},
#if defined(POTQ_X86)
    {"avx2", &kAvx2, has_avx2},         {"avxvnni", avxvnni(), has_avxvnni}, {"avx512vnni", &kAvx512Vnni, has_avx512vnni},
#else
    {"avx2", nullptr, always},     {"avxvnni", nullptr, always}, {"avx512vnni", nullptr, always},
#endif
#if defined(POTQ_ARM64)
    {"neon", &kNeon, always},           {"neondot", &kNeonDot, has_dotprod},
#else
    {"neon", nullptr, always},     {"neondot", nullptr, always},
#endif
#if defined(POTQ_I8MM)
    {"neoni8mm", &kNeonI8mm, has_i8mm},
#else
    {"neoni8mm", nullptr, always},
#endif
};
constexpr int kCount = sizeof kIsas / sizeof kIsas[0];

}  // namespace
}  // namespace potq

using namespace potq;

int32_t potq_abi(void) { return POTQ_ABI; }

const char* potq_isa_name(int32_t isa) { return isa >= 0 && isa < kCount ? kIsas[isa].name : nullptr; }

int32_t potq_isa_usable(int32_t isa) {
  if (isa < 0 || isa >= kCount || !kIsas[isa].kernels) return -1;
  return kIsas[isa].supported();
}

const char* potq_unsupported(const potq_format* format) {
  const int bits = format->bits;
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) return "kernels exist for 2, 3, 4 and 8 bits";
  if (format->trellis != 0 && format->trellis != 1) return "trellis is neither 0 nor 1";
  if (format->trellis && bits > 3) return "kernels exist for a trellis of 2 and 3 bits";
  if (format->rows < 1 || format->columns < 1) return "the weight is empty";
  if (format->rows > INT32_MAX - kRows || format->columns > INT32_MAX / 2) return "the weight has 2^30 columns or more";
  if (format->group < 1 || (format->group < format->columns && format->group % kUnit))
    return "the group size is not a multiple of 16";
  if (format->scale_format != POTQ_SCALE_FLOAT16 && format->scale_format != POTQ_SCALE_E8M0) return "unknown scale format";
  if (format->scale_rows != 1 && format->scale_rows != format->rows) return "scales are neither shared nor one per row";
  if (format->reference_log2 < 0 || format->reference_log2 > 7) return "levels exceed 8 bits";
  return nullptr;
}

int32_t potq_row_blocks(const potq_format* format) { return (format->rows + kRows - 1) / kRows; }

size_t potq_tiles_bytes(const potq_format* format) { return Layout(*format).row_block_bytes * size_t(potq_row_blocks(format)); }

static Panels panels_of(const potq_format& format, int32_t isa, int32_t arithmetic, int32_t rows) {
  const Kernels& kernels = *kIsas[isa].kernels;
  return Panels(Layout(format), arithmetic, rows, kernels.panel_rows[arithmetic], kernels.narrow_steps(format));
}

int32_t potq_panels(int32_t isa, int32_t arithmetic, int32_t rows) {
  const int most = kIsas[isa].kernels->panel_rows[arithmetic];
  return (rows + most - 1) / most;
}

size_t potq_panels_bytes(const potq_format* format, int32_t isa, int32_t arithmetic, int32_t rows) {
  const Panels panels = panels_of(*format, isa, arithmetic, rows);
  return panels.offset(panels.count);
}

void potq_prepare(const potq_product* product, int64_t first, int32_t rows, int32_t panel, uint8_t* panels) {
  const Panels cut = panels_of(*product->format, product->isa, product->arithmetic, rows);
  kIsas[product->isa].kernels->prepare(*product, first + cut.first(panel), cut.rows(panel), panels + cut.offset(panel));
}

void potq_multiply(const potq_product* product, const uint8_t* panels, int64_t first, int32_t rows, int32_t first_block,
                   int32_t last_block) {
  kIsas[product->isa].kernels->multiply(*product, panels, first, rows, first_block, last_block);
}

void potq_advise_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory), first = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t last = (begin + bytes) / kPage * kPage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}
