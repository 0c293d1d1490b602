// The kernels for AVX2 with FMA.
#include <cmath>
#include <cstring>

#include "arena.hpp"
#include "kernels.hpp"
#include "model.hpp"
#include "network.hpp"

#if defined(__x86_64__)
// Everything that is no template over the instruction set is included above, outside the region.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#include "autoencoder.hpp"
#include "evaluation.hpp"
#include "geometry.hpp"
#include "gram.hpp"
#include "training.hpp"

namespace optigrad {
namespace {

// 16 registers of 8 floats: 12 sums, and the rest for weights and the broadcast value.
struct Avx2 {
  static constexpr int width = 8;             // floats in a vector
  static constexpr int accumulators = 12;      // vectors that a tile sums up in
  static constexpr int gradient_vectors = 1;   // vectors of slopes that a tile of the weight gradient holds
};

}  // namespace

const Kernels kAvx2 = {"avx2",
                       &training_bytes<Avx2>,
                       &train_client<Avx2>,
                       &evaluation_bytes<Avx2>,
                       &evaluate_logits<Avx2>,
                       &reestimate_statistics<Avx2>,
                       &gram_bytes<Avx2>,
                       &gram<Avx2>,
                       Avx2::width,
                       &energy_of<Avx2>,
                       &sum_columns<Avx2>,
                       &multiply_with_all<Avx2>,
                       &reconstruction_errors<Avx2>};

}  // namespace optigrad

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
