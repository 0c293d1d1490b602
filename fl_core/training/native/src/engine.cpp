// The C ABI that `engine.py` calls through ctypes; that of the fingerprint is in fingerprint.cpp.
#include <stdexcept>
#include <string>
#include <vector>

#include "arena.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"
#include "status.hpp"

namespace optigrad {

thread_local std::string last_error;

namespace {

constexpr int kAbiVersion = 4;  // _ABI_VERSION in library.py

}  // namespace
}  // namespace optigrad

using namespace optigrad;

// Everything else in the library is hidden.
#pragma GCC visibility push(default)
extern "C" {

int optigrad_abi_version() { return kAbiVersion; }

const char* optigrad_last_error() { return last_error.c_str(); }

const char* optigrad_supported() { return supported_kernels().c_str(); }

// Writes the name of the kernels in use.
int optigrad_selected(const char** name) {
  return guarded([&] { *name = select_kernels().name; });
}

// shared (P,), local (clients, L), images (clients, steps, batch, C, H, W), labels (clients, steps, batch) to
// updates (clients, P) and new_local (clients, L).
int optigrad_train(const Network* network, const float* shared, const float* local,
                   const float* images, const std::int64_t* labels, std::int64_t clients,
                   std::int64_t steps, std::int64_t batch, double rate, double mu, int threads,
                   float* updates, float* new_local) {
  return guarded([&] {
    check_labels(labels, clients * steps * batch, network->classes);
    const Kernels& kernels = select_kernels();
    const Shape shape(*network);
    Arena counted;
    Model(shape, counted);
    const Memory memory(counted.used());
    Arena arena(memory.get());
    Model anchor(shape, arena);
    unpack(*network, shared, local, anchor);  // its local tensors, here the first client's, pull nobody
    const std::int64_t image = network->image_channels * network->height * network->width;
    const Sgd sgd = {float(rate), float(mu)};
    parallel_for(clients, threads, kernels.training_bytes(*network, int(batch)), [&](std::int64_t i, void* own) {
      const ClientData data = {images + i * steps * batch * image, labels + i * steps * batch, int(steps), int(batch)};
      kernels.train(*network, anchor, shared, local + i * network->num_local, data, sgd, own,
                    updates + i * network->num_shared, new_local + i * network->num_local);
    });
  });
}

// shared (models, P), local (models, L), images (count, C, H, W) to logits (models, count, classes).
int optigrad_logits(const Network* network, const float* shared, const float* local,
                    const float* images, std::int64_t models, std::int64_t count, int threads,
                    float* logits) {
  return guarded([&] {
    const Kernels& kernels = select_kernels();
    parallel_for(models, threads, kernels.evaluation_bytes(*network), [&](std::int64_t i, void* own) {
      kernels.logits(*network, shared + i * network->num_shared, local + i * network->num_local, images, count, own,
                     logits + i * count * network->classes);
    });
  });
}

// shared (models, P), local (models, L), images (count, C, H, W) to new_local (models, L).
int optigrad_reestimate(const Network* network, const float* shared, const float* local,
                        const float* images, std::int64_t models, std::int64_t count, int threads,
                        float* new_local) {
  return guarded([&] {
    const Kernels& kernels = select_kernels();
    parallel_for(models, threads, kernels.evaluation_bytes(*network), [&](std::int64_t i, void* own) {
      kernels.reestimate(*network, shared + i * network->num_shared, local + i * network->num_local, images, count,
                         own, new_local + i * network->num_local);
    });
  });
}

// updates (rows, columns) and one of its rows to the lower triangle of products (rows, rows), given as zeros. The columns
// are cut into the same parts and these added in the same order for any number of threads.
int optigrad_gram(const float* updates, std::int64_t rows, std::int64_t columns, const float* centre, int threads,
                  double* products) {
  return guarded([&] {
    const Kernels& kernels = select_kernels();
    const std::int64_t parts = 8, width = (columns + parts - 1) / parts, size = rows * rows;
    std::vector<double> partial(std::size_t(parts * size));
    parallel_for(parts, threads, kernels.gram_bytes(rows), [&](std::int64_t part, void* own) {
      const std::int64_t start = part * width, left = columns - start;
      if (left > 0)
        kernels.gram(updates + start, rows, columns, left < width ? left : width, centre + start, own,
                     partial.data() + part * size);
    });
    for (std::int64_t part = 0; part < parts; ++part)
      for (std::int64_t i = 0; i < size; ++i) products[i] += partial[std::size_t(part * size + i)];
  });
}

}
#pragma GCC visibility pop
