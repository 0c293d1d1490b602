// The kernels for any processor.
#include <cmath>
#include <cstring>

#include "arena.hpp"
#include "kernels.hpp"
#include "model.hpp"
#include "network.hpp"


#include "autoencoder.hpp"
#include "evaluation.hpp"
#include "geometry.hpp"
#include "gram.hpp"
#include "training.hpp"

namespace optigrad {
namespace {

// What every 64-bit processor has, four floats at a time (SSE2, NEON).
struct Portable {
  static constexpr int width = 4;             // floats in a vector
  static constexpr int accumulators = 12;      // vectors that a tile sums up in
  static constexpr int gradient_vectors = 1;   // vectors of slopes that a tile of the weight gradient holds
};

}  // namespace

const Kernels kPortable = {"portable",
                       &training_bytes<Portable>,
                       &train_client<Portable>,
                       &evaluation_bytes<Portable>,
                       &evaluate_logits<Portable>,
                       &reestimate_statistics<Portable>,
                       &gram_bytes<Portable>,
                       &gram<Portable>,
                       Portable::width,
                       &energy_of<Portable>,
                       &sum_columns<Portable>,
                       &multiply_with_all<Portable>,
                       &reconstruction_errors<Portable>};

}  // namespace optigrad
