// Independent pieces of work on several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace optigrad {

// Calls `work(item, memory)` for every item in 0..count, each thread with `bytes` of zeroed memory of its own.
//
// Threads take the next item as they become free. They are started for this call and gone after it, so no state of the
// process (OpenMP's, PyTorch's) is touched; starting one takes tens of microseconds, and with one thread none is.
// `work` must not throw; std::bad_alloc and std::system_error come from here, before any item is begun or after the
// threads that did start have finished.
void parallel_for(std::int64_t count, int threads, std::size_t bytes,
                  const std::function<void(std::int64_t item, void* memory)>& work);

}  // namespace optigrad
