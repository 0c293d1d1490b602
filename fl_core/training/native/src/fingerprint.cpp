// The C ABI of the fingerprint's parts, which `fl_core/fingerprint/native.py` calls; see engine.cpp for its rules.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "dispatch.hpp"
#include "fingerprint.hpp"
#include "parallel.hpp"
#include "status.hpp"

namespace optigrad {
namespace {

constexpr std::int64_t kColumns = 8 * kSketch;       // of a row, the reference and the signs: 24 KiB
constexpr std::int64_t kPeerElements = 1 << 16;      // of all rows: 256 KiB
constexpr std::int64_t kRowsAtOnce = 8;              // rows that a chunk of the reference and the signs is read for
constexpr std::int64_t kPart = 1 << 20;              // fewer elements are not worth a thread
constexpr std::int64_t kMaxParts = 16;               // fixed, so that the number of threads changes no bit

int worthwhile(int threads, std::int64_t elements) {
  return int(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, elements / kPart)));
}

// The first `rows` rows of `row_of` against the reference.
template <class RowOf>
void sum_rows(const Kernels& kernels, const RowOf& row_of, std::int64_t rows, std::int64_t size,
              const float* reference, const float* signs, int threads, RowSums* sums, double* folded) {
  std::fill_n(folded, rows * kSketch, 0.0);
  const std::int64_t groups = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  parallel_for(groups, worthwhile(threads, rows * size), 0, [&](std::int64_t group, void*) {
    const std::int64_t end = std::min((group + 1) * kRowsAtOnce, rows);
    for (std::int64_t first = 0; first < size; first += kColumns)
      for (std::int64_t i = group * kRowsAtOnce; i < end; ++i)
        kernels.sum_columns(row_of(i) + first, reference + first, signs + first, std::min(kColumns, size - first),
                            sums[i], folded + i * kSketch);
  });
}

// Σ_c x_ic Σ_j weight_j x_jc for each row i.
std::vector<double> products_with_all(const Kernels& kernels, const float* updates, std::int64_t rows,
                                      std::int64_t size, const std::vector<double>& weights, int threads) {
  const std::int64_t columns = std::max(kPeerElements / rows / kSketch, std::int64_t(1)) * kSketch;
  const std::int64_t chunks = (size + columns - 1) / columns;
  const std::int64_t parts = std::max<std::int64_t>(1, std::min({kMaxParts, chunks, rows * size / kPart}));
  std::vector<double> products(parts * rows, 0.0);
  parallel_for(parts, threads, columns * sizeof(double), [&](std::int64_t part, void* memory) {
    for (std::int64_t chunk = part * chunks / parts; chunk < (part + 1) * chunks / parts; ++chunk)
      kernels.multiply_with_all(updates + chunk * columns, rows, size, std::min(columns, size - chunk * columns),
                                weights.data(), static_cast<double*>(memory), products.data() + part * rows);
  });
  for (std::int64_t part = 1; part < parts; ++part)
    for (std::int64_t i = 0; i < rows; ++i) products[i] += products[part * rows + i];
  products.resize(rows);
  return products;
}

// The loss of one sample, and what its softmax is a multiple of: `total` times p. A NaN or an infinity makes it a NaN.
double cross_entropy(const double* logits, std::int64_t classes, std::int64_t truth, double* scaled, double& total) {
  double largest = logits[0];
  for (std::int64_t c = 1; c < classes; ++c) largest = std::max(largest, logits[c]);
  total = 0;
  for (std::int64_t c = 0; c < classes; ++c) total += scaled[c] = std::exp(logits[c] - largest);
  return std::log(total) - (logits[truth] - largest);
}

}  // namespace
}  // namespace optigrad

using namespace optigrad;

#pragma GCC visibility push(default)
extern "C" {

// updates (rows, size), reference (size,), signs (size,) to figures (4, rows + 1): norms, cosine to the reference, mean
// cosine to the others, share of the reference's signs; and to folded (rows + 1, kSketch). The last column and row are
// the reference's own, of which only the norm means anything.
int optigrad_geometry(const float* updates, const float* reference, const float* signs, std::int64_t rows,
                      std::int64_t size, int threads, double* figures, double* folded) {
  return guarded([&] {
    const Kernels& kernels = select_kernels();
    std::vector<RowSums> sums(rows + 1);
    const auto row_of = [&](std::int64_t i) { return i < rows ? updates + i * size : reference; };
    sum_rows(kernels, row_of, rows + 1, size, reference, signs, threads, sums.data(), folded);

    const RowSums& own = sums[rows];  // all of its nonzero coordinates agree with themselves
    const std::int64_t pitch = rows + 1;
    double *norms = figures, *root = norms + pitch, *peer = root + pitch, *share = peer + pitch;
    std::vector<double> inverse(pitch);
    for (std::int64_t i = 0; i < pitch; ++i) {
      norms[i] = std::sqrt(sums[i].energy);
      inverse[i] = norms[i] > 0 ? 1 / norms[i] : 0;
      const double scale = norms[i] * std::sqrt(own.energy);
      root[i] = scale > 0 ? sums[i].product / scale : 0;
      share[i] = own.agreeing ? double(sums[i].agreeing) / double(own.agreeing) : 0.5;
      peer[i] = 0;
    }
    if (rows == 1) return;
    const std::vector<double> with_all = products_with_all(kernels, updates, rows, size, inverse, threads);
    for (std::int64_t i = 0; i < rows; ++i)
      peer[i] = (with_all[i] * inverse[i] - (norms[i] > 0)) / double(rows - 1);
  });
}

// updates (rows, size) to norms (rows,).
int optigrad_norms(const float* updates, std::int64_t rows, std::int64_t size, int threads, double* norms) {
  return guarded([&] {
    const Kernels& kernels = select_kernels();
    parallel_for(rows, worthwhile(threads, rows * size), 0, [&](std::int64_t i, void*) {
      norms[i] = std::sqrt(kernels.energy(updates + i * size, size));
    });
  });
}

// sketches (count, inputs of the first layer) to errors (count,).
int optigrad_reconstruction_errors(const Autoencoder* network, const float* sketches, std::int64_t count, int threads,
                                   float* errors) {
  return guarded([&] {
    const Kernels& kernels = select_kernels();
    const std::int64_t size = network->layers[0].inputs, lanes = 2 * kernels.width;
    const std::int64_t blocks = (count + lanes - 1) / lanes;
    const std::size_t bytes = std::size_t(size + 2 * network->widest) * lanes * sizeof(float);
    parallel_for(blocks, threads, bytes, [&](std::int64_t block, void* memory) {
      const std::int64_t first = block * lanes;
      kernels.reconstruction_errors(*network, sketches + first * size, int(std::min(lanes, count - first)),
                                    static_cast<float*>(memory), errors + first);
    });
  });
}

// The models that the surrogate game is probed with, (clients + 2, size): shared, shared plus the mean of the clipped
// updates, and shared plus each client's.
int optigrad_probes(const float* shared, const float* updates, const double* clip, std::int64_t clients,
                    std::int64_t size, float* models) {
  return guarded([&] {
    float* const grand = models + size;
    std::copy_n(shared, size, models);
    std::fill_n(grand, size, 0.0f);
    for (std::int64_t i = 0; i < clients; ++i) {
      const float *update = updates + i * size, factor = float(clip[i]), share = float(clip[i] / double(clients));
      float* const alone = models + (i + 2) * size;
      for (std::int64_t k = 0; k < size; ++k) {
        alone[k] = shared[k] + factor * update[k];
        grand[k] += share * update[k];
      }
    }
    for (std::int64_t k = 0; k < size; ++k) grand[k] += shared[k];
  });
}

// Shapley values (clients,) of the surrogate game, see SurrogateShapley: from logits (clients + 2, samples, classes) of
// its probes and labels (samples,).
int optigrad_surrogate(const float* logits, const std::int64_t* labels, std::int64_t clients, std::int64_t samples,
                       std::int64_t classes, double cap, const QuadraticWeights* weights, double* shapley) {
  return guarded([&] {
    check_labels(labels, samples, classes);
    std::vector<double> values(clients + 2), slope(clients, 0.0), variance(clients, 0.0);
    const std::int64_t model = samples * classes;
    std::vector<double> row(classes), p(classes), mean(model, 0.0);
    const auto finite = [&](std::int64_t m, std::int64_t at) {
      const double logit = logits[m * model + at];
      return std::isfinite(logit) ? logit : 0.0;
    };
    for (std::int64_t m = 0; m < clients + 2; ++m) {
      double losses = 0, total;
      for (std::int64_t v = 0; v < samples; ++v) {
        std::copy_n(logits + m * model + v * classes, classes, row.data());
        const double loss = cross_entropy(row.data(), classes, labels[v], p.data(), total);
        losses += loss < cap ? loss : cap;  // a NaN counts as the cap
      }
      values[m] = -losses / double(samples);
      for (std::int64_t at = 0; m >= 2 && at < model; ++at) mean[at] += finite(m, at) / double(clients);
    }
    for (std::int64_t v = 0; v < samples; ++v) {
      const std::int64_t first = v * classes;
      for (std::int64_t c = 0; c < classes; ++c) row[c] = finite(1, first + c);
      double total;
      // A sample at its cap contributes a constant.
      if (!(cross_entropy(row.data(), classes, labels[v], p.data(), total) < cap)) continue;
      for (std::int64_t c = 0; c < classes; ++c) p[c] /= total;
      for (std::int64_t i = 0; i < clients; ++i) {
        double along = 0, square = 0, truth = 0;
        for (std::int64_t c = 0; c < classes; ++c) {
          const double change = finite(i + 2, first + c) - mean[first + c];
          along += p[c] * change;
          square += p[c] * change * change;
          if (c == labels[v]) truth = change;
        }
        slope[i] += (along - truth) / double(samples);
        variance[i] += (square - along * along) / double(samples);
      }
    }

    const double n = double(clients), empty = values[0], grand = values[1];
    double common = (grand - empty) / n, all_alone = 0;
    std::vector<double>& alone = values;  // what each client alone is worth beyond the quadratic game
    for (std::int64_t i = 0; i < clients; ++i) {
      common -= weights->slopes * slope[i] + weights->owns * variance[i];
      all_alone += alone[i + 2] -= grand - slope[i] - variance[i] / 2;
    }
    for (std::int64_t i = 0; i < clients; ++i) {
      const double own = alone[i + 2], others = clients > 1 ? (all_alone - own) / (n - 1) : 0;
      shapley[i] = common - weights->slope * slope[i] - weights->own * variance[i] + (own - others) / n;
    }
  });
}

}
#pragma GCC visibility pop
