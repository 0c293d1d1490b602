#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "arena.hpp"

namespace optigrad {
namespace {

class Joined {
 public:
  ~Joined() {
    for (std::thread& thread : threads_) thread.join();
  }
  void reserve(std::size_t count) { threads_.reserve(count); }
  template <class Run>
  void start(const Run& run) {
    threads_.emplace_back(run);
  }

 private:
  std::vector<std::thread> threads_;
};

}  // namespace

void parallel_for(std::int64_t count, int threads, std::size_t bytes,
                  const std::function<void(std::int64_t item, void* memory)>& work) {
  const int workers = int(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, count)));
  std::vector<Memory> memories;
  memories.reserve(workers);
  for (int i = 0; i < workers; ++i) memories.emplace_back(bytes);

  std::atomic<std::int64_t> next{0};
  const auto run = [&](void* memory) {
    for (std::int64_t item = next++; item < count; item = next++) work(item, memory);
  };
  Joined helpers;
  helpers.reserve(workers - 1);
  for (int i = 1; i < workers; ++i) helpers.start([&run, memory = memories[i].get()] { run(memory); });
  run(memories[0].get());
}

}  // namespace optigrad
