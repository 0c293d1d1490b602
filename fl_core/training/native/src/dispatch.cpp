#include "dispatch.hpp"

#include <cstdlib>
#include <stdexcept>
#include <vector>

namespace optigrad {
namespace {

std::vector<const Kernels*> detect() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
    found.push_back(&kAvx512);
  if (avx2) found.push_back(&kAvx2);
#endif
  found.push_back(&kPortable);
  return found;
}

const std::vector<const Kernels*>& supported() {
  static const std::vector<const Kernels*> kernels = detect();
  return kernels;
}

}  // namespace

const Kernels& select_kernels() {
  const char* wanted = std::getenv("OPTIGRAD_ISA");
  if (!wanted || !*wanted) return *supported().front();
  for (const Kernels* kernels : supported())
    if (wanted == std::string(kernels->name)) return *kernels;
  throw std::invalid_argument("OPTIGRAD_ISA is '" + std::string(wanted) + "'; this processor runs: " +
                              supported_kernels());
}

const std::string& supported_kernels() {
  static const std::string names = [] {
    std::string joined;
    for (const Kernels* kernels : supported()) joined += (joined.empty() ? "" : " ") + std::string(kernels->name);
    return joined;
  }();
  return names;
}

}  // namespace optigrad
