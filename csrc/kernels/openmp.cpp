// The drivers for callers that share an OpenMP pool with torch: loops over row blocks, nothing else.
#include <cstdlib>

#include "../potq.h"
#include "layout.h"

#if defined(_OPENMP)
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
static int omp_get_num_threads() { return 1; }
#endif

namespace {

constexpr int64_t kSerialWork = 1 << 16;         // multiplications below which a second thread costs more than it saves
constexpr size_t kChunkBytes = 2 * 1024 * 1024;  // of prepared activations, half of which is rarely touched
constexpr int64_t kMinChunk = 48;                // rows, however long
constexpr int kTaskBlocks = 4;                   // row blocks a thread takes at a time

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

// Activation rows that are prepared at once: as many as stay in the second-level cache, in chunks of nearly equal size.
int64_t chunk_rows(const potq_product& product) {
  const size_t row = potq_panels_bytes(product.format, product.isa, product.arithmetic, 1);
  const int64_t fitting = int64_t(kChunkBytes / row), most = fitting < kMinChunk ? kMinChunk : fitting;
  const int64_t chunks = (product.m + most - 1) / most;
  return (product.m + chunks - 1) / chunks;
}

// A single panel is cheaper to prepare by every thread for itself than to share.
bool prepared_by_each(const potq_product& product) {
  return potq_panels(product.isa, product.arithmetic, int32_t(product.m)) == 1;
}

size_t own_bytes(const potq_product& product) {
  return potq_panels_bytes(product.format, product.isa, product.arithmetic, int32_t(chunk_rows(product)));
}

// A product of one panel: this thread's part of it.
void run_part(const potq_product& product, uint8_t* panel, int thread, int threads) {
  const int64_t blocks = potq_row_blocks(product.format);
  const int rows = int(product.m);
  potq_prepare(&product, 0, rows, 0, panel);
  potq_multiply(&product, panel, 0, rows, int(blocks * thread / threads), int(blocks * (thread + 1) / threads));
}

// Called by all threads of a team.
void run(const potq_product& product, uint8_t* workspace) {
  if (prepared_by_each(product)) {
    const int thread = omp_get_thread_num();
    run_part(product, workspace + own_bytes(product) * size_t(thread), thread, omp_get_num_threads());
#pragma omp barrier
    return;
  }
  const int blocks = potq_row_blocks(product.format);
  const int64_t chunk = chunk_rows(product);
  for (int64_t first = 0; first < product.m; first += chunk) {
    const int rows = int(first + chunk < product.m ? chunk : product.m - first);
    const int panels = potq_panels(product.isa, product.arithmetic, rows);
#pragma omp for schedule(static)
    for (int panel = 0; panel < panels; panel++) potq_prepare(&product, first, rows, panel, workspace);
#pragma omp for schedule(dynamic, 1)
    for (int block = 0; block < blocks; block += kTaskBlocks) {
      const int last = block + kTaskBlocks < blocks ? block + kTaskBlocks : blocks;
      potq_multiply(&product, workspace, first, rows, block, last);
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
  bool single = true;  // panels only
  for (int i = 0; i < count; i++) {
    if (products[i].m < 1) continue;
    const bool by_each = prepared_by_each(products[i]);
    const size_t needed = own_bytes(products[i]) * size_t(by_each ? threads : 1);
    bytes = needed > bytes ? needed : bytes;
    work += products[i].m * products[i].format->rows * products[i].format->columns;
    single = single && by_each;
  }
  uint8_t* memory = workspace.take(bytes);
  if (!memory) return bytes > 0;
  if (single && team(work, threads) == 1) {  // a parallel region of one thread costs 0.4 us
    for (int i = 0; i < count; i++) {
      if (products[i].m > 0) run_part(products[i], memory, 0, 1);
    }
    return 0;
  }
#pragma omp parallel num_threads(team(work, threads))
  for (int i = 0; i < count; i++) {
    if (products[i].m > 0) run(products[i], memory);
  }
  return 0;
}

void potq_pack_all(const potq_format* format, const uint8_t* packed, const void* scale, uint8_t* tiles, int32_t threads) {
  const int blocks = potq_row_blocks(format);
  potq_advise_huge_pages(tiles, potq_tiles_bytes(format));
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
