#include "pool.h"

#include <sched.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace potq {
namespace engine {
namespace {

constexpr int kSpins = 2000;       // some 50 microseconds: then others may have the core
constexpr int kIdleSpins = 20000;  // between jobs: then sleep
constexpr int kLine = 64, kLinesASpin = 8;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Asks for the next few lines; whether there were any.
inline bool fetch(Ahead* ahead) {
  for (int i = 0; i < kLinesASpin && ahead->bytes; i++) {
    __builtin_prefetch(ahead->from, 0, 2);  // to the second level: the first holds the activations
    const size_t step = ahead->bytes < kLine ? ahead->bytes : kLine;
    ahead->from += step, ahead->bytes -= step;
  }
  return ahead->bytes > 0;
}

}  // namespace

Pool::Pool(int threads) : threads_(threads) {
  try {
    for (int thread = 1; thread < threads; thread++) workers_.emplace_back(&Pool::work, this, thread);
  } catch (...) {  // the system has no more threads: end those that there are
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      jobs_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    throw;
  }
}

Pool::~Pool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    jobs_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::run(void (*job)(void*, int), void* argument) {
  job_ = job, argument_ = argument;
  if (threads_ > 1) {
    jobs_.fetch_add(1);  // sequentially consistent, as is sleeping_: either we see the sleeper, or it sees the job
    if (sleeping_.load()) {
      const std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
  }
  job(argument, 0);
  barrier();
}

void Pool::barrier(Ahead ahead) {
  const uint32_t before = passed_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    next_task_.store(0, std::memory_order_relaxed);
    passed_.store(before + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; passed_.load(std::memory_order_acquire) == before; spins++) {
    if (fetch(&ahead)) continue;
    if (spins < kSpins)
      pause();
    else
      sched_yield();
  }
}

void Pool::wait_for_job(uint32_t seen) {
  for (int spins = 0; spins < kIdleSpins; spins++) {
    if (jobs_.load() != seen) return;
    pause();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  sleeping_.fetch_add(1);
  wake_.wait(lock, [&] { return jobs_.load() != seen; });
  sleeping_.fetch_sub(1);
}

void Pool::work(int thread) {
  for (uint32_t seen = 0;;) {
    wait_for_job(seen);
    seen++;
    if (stopping_) return;
    job_(argument_, thread);
    barrier();
  }
}

}  // namespace engine
}  // namespace potq
