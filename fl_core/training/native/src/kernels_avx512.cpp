// The kernels for AVX-512.
#include <cmath>
#include <cstring>

#include "arena.hpp"
#include "kernels.hpp"
#include "model.hpp"
#include "network.hpp"

#if defined(__x86_64__)
// Everything that is no template over the instruction set is included above, outside the region.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif

#include "autoencoder.hpp"
#include "evaluation.hpp"
#include "geometry.hpp"
#include "gram.hpp"
#include "training.hpp"

namespace optigrad {
namespace {

// 32 registers of 16 floats.
struct Avx512 {
  static constexpr int width = 16;             // floats in a vector
  static constexpr int accumulators = 16;      // vectors that a tile sums up in
  static constexpr int gradient_vectors = 2;   // vectors of slopes that a tile of the weight gradient holds
};

}  // namespace

const Kernels kAvx512 = {"avx512",
                       &training_bytes<Avx512>,
                       &train_client<Avx512>,
                       &evaluation_bytes<Avx512>,
                       &evaluate_logits<Avx512>,
                       &reestimate_statistics<Avx512>,
                       &gram_bytes<Avx512>,
                       &gram<Avx512>,
                       Avx512::width,
                       &energy_of<Avx512>,
                       &sum_columns<Avx512>,
                       &multiply_with_all<Avx512>,
                       &reconstruction_errors<Avx512>};

}  // namespace optigrad

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
