// Bump allocation inside one block of memory, 64-byte aligned and zeroed.
//
// A workspace is laid out twice: once on an arena without memory, which only counts, then on one of that size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace optigrad {

constexpr std::size_t kCacheLine = 64;

class Arena {
 public:
  Arena() = default;
  explicit Arena(void* memory) : base_(static_cast<char*>(memory)) {}

  float* floats(std::size_t count) { return static_cast<float*>(take(count * sizeof(float))); }
  double* doubles(std::size_t count) { return static_cast<double*>(take(count * sizeof(double))); }
  std::int32_t* ints(std::size_t count) { return static_cast<std::int32_t*>(take(count * sizeof(std::int32_t))); }
  std::int8_t* bytes(std::size_t count) { return static_cast<std::int8_t*>(take(count)); }
  std::size_t used() const { return used_; }

 private:
  void* take(std::size_t size) {
    char* place = base_ ? base_ + used_ : nullptr;
    std::size_t taken = (size + kCacheLine - 1) / kCacheLine * kCacheLine;
#if defined(__SANITIZE_ADDRESS__)
    taken += kCacheLine;  // a gap that must not be touched: a step out of one buffer is not a step into the next
    if (place) __asan_poison_memory_region(place + size, taken - size);
#endif
    used_ += taken;
    return place;
  }

  char* base_ = nullptr;
  std::size_t used_ = 0;
};

// Owns the memory of one thread.
class Memory {
 public:
  explicit Memory(std::size_t size) {
    const std::size_t whole = (size / kCacheLine + 1) * kCacheLine;
    data_ = std::aligned_alloc(kCacheLine, whole);
    if (!data_) throw std::bad_alloc();
    std::memset(data_, 0, whole);
  }
  Memory(Memory&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { std::free(data_); }

  void* get() const { return data_; }

 private:
  void* data_;
};

}  // namespace optigrad
