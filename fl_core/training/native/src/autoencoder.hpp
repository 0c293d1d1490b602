// Reconstruction errors of an autoencoder of dense layers.
//
// A few vectors of a few hundred numbers meet two megabytes of weights. So clients lie in the lanes: each weight is
// read once, broadcast, and multiplied with all clients of a block, and activations are (features, lanes) from the
// first layer to the last. Weights are taken as PyTorch stores them, (outputs, inputs), without a copy.
#pragma once

#include <cstdint>

#include "fingerprint.hpp"
#include "vectors.hpp"

namespace optigrad {

constexpr int kOutputsAtOnce = 8;  // as many independent sums hide the latency of a multiply-add

// Up to `Vectors` vectors of clients through one layer, `Outputs` outputs at a time.
template <class Isa, int Vectors, int Outputs>
void dense_outputs(const DenseLayer& layer, std::int64_t first, const float* in, float* out) {
  using V = Simd<Isa, Isa::width>;
  constexpr int lanes = Vectors * Isa::width;
  typename V::Floats sums[Outputs][Vectors];
  for (int o = 0; o < Outputs; ++o)
    for (int v = 0; v < Vectors; ++v) sums[o][v] = layer.bias[first + o] + typename V::Floats{};
  const float* weights = layer.weight + first * layer.inputs;
  for (std::int64_t k = 0; k < layer.inputs; ++k)
    for (int v = 0; v < Vectors; ++v) {
      const typename V::Floats x = V::load(in + k * lanes + v * Isa::width);
      for (int o = 0; o < Outputs; ++o) sums[o][v] += weights[o * layer.inputs + k] * x;
    }
  for (int o = 0; o < Outputs; ++o)
    for (int v = 0; v < Vectors; ++v) {
      // max(x, 0) that keeps NaN, as PyTorch's does.
      if (layer.relu) sums[o][v] = V::keep(sums[o][v], (typename V::Ints)!(sums[o][v] <= typename V::Floats{}));
      V::store(out + (first + o) * lanes + v * Isa::width, sums[o][v]);
    }
}

template <class Isa, int Vectors>
void dense_layer(const DenseLayer& layer, const float* in, float* out) {
  constexpr int at_once = Vectors == 1 ? kOutputsAtOnce : kOutputsAtOnce / 2;
  std::int64_t first = 0;
  for (; first + at_once <= layer.outputs; first += at_once)
    dense_outputs<Isa, Vectors, at_once>(layer, first, in, out);
  for (; first < layer.outputs; ++first) dense_outputs<Isa, Vectors, 1>(layer, first, in, out);
}

// Errors ‖y − x‖² / ‖x‖² of at most `Vectors` vectors of clients; x is `gain` times the sketch.
template <class Isa, int Vectors>
void reconstruct(const Autoencoder& network, const float* sketches, int count, float* buffers, float* errors) {
  constexpr int lanes = Vectors * Isa::width;
  const std::int64_t size = network.layers[0].inputs;
  float* const original = buffers;
  float* in = original;
  float* out = original + size * lanes;
  float* other = out + network.widest * lanes;
  for (std::int64_t k = 0; k < size; ++k)
    for (int i = 0; i < lanes; ++i) original[k * lanes + i] = i < count ? network.gain * sketches[i * size + k] : 0;
  for (int l = 0; l < network.num_layers; ++l) {
    dense_layer<Isa, Vectors>(network.layers[l], in, out);
    float* const next = in == original ? other : in;
    in = out;
    out = next;
  }
  for (int i = 0; i < count; ++i) {
    float energy = 0, error = 0;
    for (std::int64_t k = 0; k < size; ++k) {
      const float x = original[k * lanes + i], off = in[k * lanes + i] - x;
      energy += x * x;
      error += off * off;
    }
    errors[i] = energy > 0 ? error / energy : 0;
  }
}

// sketches (count, size) of at most 2 * Isa::width clients to errors (count,).
template <class Isa>
void reconstruction_errors(const Autoencoder& network, const float* sketches, int count, float* buffers,
                           float* errors) {
  if (count > Isa::width)
    reconstruct<Isa, 2>(network, sketches, count, buffers, errors);
  else
    reconstruct<Isa, 1>(network, sketches, count, buffers, errors);
}

}  // namespace optigrad
