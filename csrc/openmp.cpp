// The drivers for callers that share an OpenMP pool with torch: loops over row blocks, nothing else.
#include <cstdlib>
#include <new>

#include "layout.h"
#include "potq.h"

#if defined(_OPENMP)
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
static int omp_get_num_threads() { return 1; }
#endif

namespace {

constexpr int64_t kSerialWork = 1 << 16;    // multiplications below which a second thread costs more than it saves
constexpr size_t kChunkBytes = 512 * 1024;  // of prepared activations: they stay in the second-level cache

// Memory for panels, kept by the thread that calls.
class Workspace {
 public:
  ~Workspace() { std::free(memory_); }
  uint8_t* take(size_t bytes) {
    if (bytes <= size_) return memory_;
    std::free(memory_);
    size_ = potq::round_up(bytes, 4096);
    memory_ = static_cast<uint8_t*>(std::aligned_alloc(64, size_));
    if (!memory_) size_ = 0;
    return memory_;
  }

 private:
  uint8_t* memory_ = nullptr;
  size_t size_ = 0;
};

// How the activations of one product are cut: panels of nearly equal height, chunks of panels.
struct Plan {
  int64_t panels;
  int64_t panels_per_chunk;
  size_t panel_bytes;  // of the tallest

  explicit Plan(const potq_product& product) {
    const int64_t rows = potq_panel_rows(product.isa, product.arithmetic);
    panels = (product.m + rows - 1) / rows;
    panel_bytes = potq_panel_bytes(product.format, product.arithmetic, int32_t((product.m + panels - 1) / panels));
    panels_per_chunk = int64_t(kChunkBytes / panel_bytes);
    if (panels_per_chunk < 2) panels_per_chunk = 2;
    if (panels_per_chunk > panels) panels_per_chunk = panels;
  }
  int64_t first(const potq_product& product, int64_t panel) const { return product.m * panel / panels; }
  // a single panel is cheaper to prepare by every thread for itself than to share
  size_t workspace(int threads) const { return panel_bytes * size_t(panels == 1 ? threads : panels_per_chunk); }
};

void prepare(const potq_product& product, const Plan& plan, int64_t panel, uint8_t* to) {
  const int64_t first = plan.first(product, panel);
  potq_prepare(&product, first, int32_t(plan.first(product, panel + 1) - first), to);
}

void multiply(const potq_product& product, const Plan& plan, int64_t panel, const uint8_t* from, int first, int last) {
  const int64_t row = plan.first(product, panel);
  potq_multiply(&product, from, row, int32_t(plan.first(product, panel + 1) - row), first, last);
}

// Called by all threads of a team.
void run(const potq_product& product, uint8_t* workspace) {
  const Plan plan(product);
  const int blocks = potq_row_blocks(product.format);
  const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
  if (plan.panels == 1) {
    uint8_t* own = workspace + plan.panel_bytes * size_t(thread);
    prepare(product, plan, 0, own);
    multiply(product, plan, 0, own, int(int64_t(blocks) * thread / threads), int(int64_t(blocks) * (thread + 1) / threads));
#pragma omp barrier
    return;
  }
  for (int64_t chunk = 0; chunk < plan.panels; chunk += plan.panels_per_chunk) {
    const int64_t end = chunk + plan.panels_per_chunk < plan.panels ? chunk + plan.panels_per_chunk : plan.panels;
#pragma omp for schedule(static)
    for (int64_t panel = chunk; panel < end; panel++)
      prepare(product, plan, panel, workspace + plan.panel_bytes * size_t(panel - chunk));
#pragma omp for schedule(dynamic, 2)
    for (int block = 0; block < blocks; block++) {
      for (int64_t panel = chunk; panel < end; panel++)
        multiply(product, plan, panel, workspace + plan.panel_bytes * size_t(panel - chunk), block, block + 1);
    }
  }
}

int team(int64_t work, int threads) { return work < kSerialWork ? 1 : threads; }

}  // namespace

int32_t potq_has_openmp(void) {
#if defined(_OPENMP)
  return 1;
#else
  return 0;
#endif
}

int32_t potq_linear(const potq_product* products, int32_t count, int32_t threads) {
  static thread_local Workspace workspace;
  size_t bytes = 0;
  int64_t work = 0;
  for (int i = 0; i < count; i++) {
    if (products[i].m < 1) continue;
    const size_t needed = Plan(products[i]).workspace(threads);
    bytes = needed > bytes ? needed : bytes;
    work += products[i].m * products[i].format->rows * products[i].format->columns;
  }
  uint8_t* memory = workspace.take(bytes);
  if (!memory) return bytes > 0;
#pragma omp parallel num_threads(team(work, threads))
  for (int i = 0; i < count; i++) {
    if (products[i].m > 0) run(products[i], memory);
  }
  return 0;
}

void potq_pack_all(const potq_format* format, const uint8_t* packed, const void* scale, uint8_t* tiles, int32_t threads) {
  const int blocks = potq_row_blocks(format);
#pragma omp parallel for schedule(static) num_threads(team(int64_t(format->rows) * format->columns, threads))
  for (int block = 0; block < blocks; block++) potq_pack(format, packed, scale, tiles, block, block + 1);
}

int64_t potq_lookup_all(const potq_format* format, const uint8_t* packed, const void* scale, const int64_t* ids, int64_t count,
                        int64_t table_rows, void* out, int32_t dtype, int32_t threads) {
  for (int64_t i = 0; i < count; i++) {
    if (ids[i] < 0 || ids[i] >= table_rows) return i;
  }
#pragma omp parallel for schedule(static) num_threads(team(count * format->columns, threads))
  for (int64_t i = 0; i < count; i++) potq_lookup(format, packed, scale, ids, i, i + 1, out, dtype);
  return -1;
}
