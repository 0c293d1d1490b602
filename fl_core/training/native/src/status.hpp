// How the functions of the C ABI report errors: none throws; each returns a status and leaves a message.
#pragma once

#include <cstdint>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

namespace optigrad {

enum Status { kDone = 0, kInvalidArgument = 1, kOutOfMemory = 2, kFailed = 3 };

extern thread_local std::string last_error;

inline void remember(const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {  // there is no memory even for the message
    last_error.clear();
  }
}

template <class Work>
int guarded(const Work& work) noexcept {
  try {
    work();
    return kDone;
  } catch (const std::invalid_argument& error) {
    remember(error.what());
    return kInvalidArgument;
  } catch (const std::bad_alloc&) {
    remember("not enough memory for the native engine");
    return kOutOfMemory;
  } catch (const std::exception& error) {
    remember(error.what());
    return kFailed;
  }
}

inline void check_labels(const std::int64_t* labels, std::int64_t count, std::int64_t classes) {
  for (std::int64_t i = 0; i < count; ++i)
    if (labels[i] < 0 || labels[i] >= classes)
      throw std::invalid_argument("labels must be 0 to " + std::to_string(classes - 1) + ", got " +
                                  std::to_string(labels[i]));
}

}  // namespace optigrad
