#include "pool.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace potq {
namespace engine {
namespace {

constexpr int kLine = 64, kLinesASpin = 8;
constexpr int kSpins = 16;  // until the clock is read

thread_local Patience at_barriers(std::chrono::microseconds(200)), between_jobs(std::chrono::microseconds(1000));

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
  if (threads_ > 1) advance(jobs_);
  job(argument, 0);
  barrier();
}

void Pool::barrier(Ahead ahead) {
  const uint32_t before = passed_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    next_task_.store(0, std::memory_order_relaxed);
    return advance(passed_);
  }
  wait(passed_, before, at_barriers, ahead);
}

// Sequentially consistent, as is sleeping_: either we see the sleeper, or it sees the new number.
void Pool::advance(std::atomic<uint32_t>& counter) {
  counter.fetch_add(1);
  if (!sleeping_.load()) return;
  const std::lock_guard<std::mutex> lock(mutex_);  // which who counts as a sleeper holds until it sleeps
  wake_.notify_all();
}

void Pool::wait(const std::atomic<uint32_t>& counter, uint32_t seen, Patience& patience, Ahead ahead) {
  const auto changed = [&] { return counter.load() != seen; };
  for (int spins = 0; spins < kSpins;) {  // most waits end here
    if (changed()) return patience.rewarded();
    if (!fetch(&ahead)) pause(), spins++;
  }
  const auto end = std::chrono::steady_clock::now() + patience.left();
  do {
    for (int i = 0; i < kSpins; i++) {
      if (changed()) return patience.rewarded();
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  patience.disappointed();
  std::unique_lock<std::mutex> lock(mutex_);
  sleeping_.fetch_add(1);
  wake_.wait(lock, changed);
  sleeping_.fetch_sub(1);
}

void Pool::work(int thread) {
  for (uint32_t seen = 0;;) {
    wait(jobs_, seen, between_jobs, {});
    seen++;
    if (stopping_) return;
    job_(argument_, thread);
    barrier();
  }
}

}  // namespace engine
}  // namespace potq
