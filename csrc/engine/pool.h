// The engine's threads: a token is one job, which all threads run from its first layer to its last, and meet at barriers.
//
// A barrier spins, since the work between two of them takes some 10 microseconds and waking a thread takes 50. Where other
// programs have the cores, though, who spins keeps the one it waits for from running: then threads sleep after a few
// microseconds (see Patience). Between jobs they do the same with more patience, since the next token follows at once. The
// caller is thread 0. Rejected: a fork and join for each layer; OpenMP, whose barriers belong to torch's settings; yielding
// the core instead of sleeping, for which the system takes time from the thread, whose next work then comes late.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace potq {
namespace engine {

// Bytes that a thread will read behind the next barrier.
struct Ahead {
  const uint8_t* from = nullptr;
  size_t bytes = 0;
};

// How long a thread spins before it sleeps. Every spin in vain halves it, every other one adds a little, so it is long on a
// free machine and short on a busy one.
class Patience {
 public:
  explicit constexpr Patience(std::chrono::microseconds most) : most_(most), left_(most) {}
  std::chrono::microseconds left() const { return left_; }
  void rewarded() { left_ = std::min(most_, left_ + most_ / kSteps); }
  void disappointed() { left_ = std::max(left_ / 2, most_ / kSteps); }

 private:
  static constexpr int kSteps = 50;
  std::chrono::microseconds most_, left_;
};

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // Runs job(argument, thread) on every thread; returns when all are done. Jobs must not throw. One caller at a time.
  void run(void (*job)(void*, int), void* argument);

  // Within a job: waits for all threads. What they wrote before it, all see behind it. Meanwhile fetches what comes next.
  void barrier(Ahead ahead = {});
  // Within a job: the first of the next `step` tasks that nobody took since the last barrier.
  int take(int step) { return next_task_.fetch_add(step, std::memory_order_relaxed); }

 private:
  void work(int thread);
  // Until the counter is another than `seen`.
  void wait(const std::atomic<uint32_t>& counter, uint32_t seen, Patience& patience, Ahead ahead);
  void advance(std::atomic<uint32_t>& counter);

  const int threads_;
  void (*job_)(void*, int) = nullptr;
  void* argument_ = nullptr;
  bool stopping_ = false;
  alignas(64) std::atomic<uint32_t> jobs_{0};
  alignas(64) std::atomic<int> sleeping_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> passed_{0};
  alignas(64) std::atomic<int> next_task_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

}  // namespace engine
}  // namespace potq
