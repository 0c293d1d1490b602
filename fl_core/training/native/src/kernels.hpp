// What one instruction set offers: the whole work on one model, behind function pointers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fingerprint.hpp"
#include "model.hpp"
#include "network.hpp"

namespace optigrad {

struct Sgd {
  float rate, mu;
};

// One client's data: (steps, batch, C, H, W) images and (steps, batch) labels.
struct ClientData {
  const float* images;
  const std::int64_t* labels;
  int steps, batch;
};

// Each `_bytes` says how much zeroed memory the function beside it needs. A client's or model's work touches its own
// memory only, so that any number of threads give the same bits.
struct Kernels {
  const char* name;

  std::size_t (*training_bytes)(const Network& network, int batch);
  void (*train)(const Network& network, const Model& anchor, const float* shared, const float* local,
                const ClientData& data, Sgd sgd, void* memory, float* updates, float* new_local);

  std::size_t (*evaluation_bytes)(const Network& network);
  // images (count, C, H, W) to logits (count, classes), with running statistics.
  void (*logits)(const Network& network, const float* shared, const float* local, const float* images,
                 std::int64_t count, void* memory, float* logits);
  // `new_local` is `local` with the statistics of the images in place of the running ones.
  void (*reestimate)(const Network& network, const float* shared, const float* local, const float* images,
                     std::int64_t count, void* memory, float* new_local);

  std::size_t (*gram_bytes)(std::int64_t rows);
  // Adds the inner products of `columns` columns, relative to the row `centre`, to the lower triangle of (rows, rows).
  void (*gram)(const float* updates, std::int64_t rows, std::int64_t stride, std::int64_t columns, const float* centre,
               void* memory, double* products);
  // The fingerprint's, see geometry.hpp and autoencoder.hpp. `reconstruction_errors` takes up to 2 * width clients.
  int width;  // floats in a vector
  double (*energy)(const float* row, std::int64_t count);
  void (*sum_columns)(const float* row, const float* reference, const float* signs, std::int64_t count, RowSums& sums,
                      double* folded);
  void (*multiply_with_all)(const float* updates, std::int64_t rows, std::int64_t pitch, std::int64_t columns,
                            const double* weights, double* sum, double* with_all);
  void (*reconstruction_errors)(const Autoencoder& network, const float* sketches, int count, float* buffers,
                                float* errors);
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

}  // namespace optigrad
