// Dense layers: y = x W^T + b, the gradient of x, and the step of W in place.
//
// Rows of x and W are padded with zeros to whole vectors. Forwards the vectors run along a row and a tile of
// outputs x samples stays in registers; backwards they run along the row too, with one broadcast slope per output,
// so W is read as PyTorch stores it and never transposed. The weight gradient is never stored either: it goes from
// registers straight into the step.
#pragma once

#include "network.hpp"
#include "sgd.hpp"
#include "vectors.hpp"

namespace optigrad {

template <int Value>
struct Constant {
  static constexpr int value = Value;
};

// Calls `visit(Constant<n>, first)` for blocks that cover 0..count: of `Block` while they fit, then of halves.
template <int Block, class Visit>
[[gnu::always_inline]] inline void in_blocks(int count, const Visit& visit, int first = 0) {
  for (; first + Block <= count; first += Block) visit(Constant<Block>{}, first);
  if constexpr (Block > 1) {
    if (first < count) in_blocks<Block / 2>(count, visit, first);
  }
}

template <class Isa>
struct Dense {
  static constexpr int kWidth = Isa::width;
  static constexpr int kSamples = 4, kOutputs = Isa::accumulators >= 16 ? 4 : 2;  // the forward tile
  static constexpr int kSlopes = Isa::accumulators / 2;  // sums of a backward tile, of two vectors each
  static_assert(kRowAlignment % kWidth == 0, "rows must be whole vectors");

  using V = Simd<Isa, kWidth>;
  using Floats = typename V::Floats;

  // x: (batch, layer.pitch), y: (batch, y_pitch).
  static void forward(const float* x, const float* weights, const float* bias, const DenseShape& layer, int batch,
                      float* y, std::size_t y_pitch) {
    in_blocks<kOutputs>(layer.outputs, [&](auto outputs, int output) {
      in_blocks<kSamples>(batch, [&](auto samples, int sample) {
        forward_tile<outputs.value, samples.value>(x + sample * layer.pitch, weights + output * layer.pitch,
                                                   bias + output, layer.pitch, y + sample * y_pitch + output, y_pitch);
      });
    });
  }

  // slopes: (batch, slope_pitch) of y; x_slopes: (batch, layer.pitch).
  static void input_gradient(const float* slopes, std::size_t slope_pitch, const float* weights,
                             const DenseShape& layer, int batch, float* x_slopes) {
    in_blocks<2>(int(layer.pitch / kWidth), [&](auto vectors, int vector) {
      in_blocks<8>(batch, [&](auto samples, int sample) {
        constexpr int kVectors = decltype(vectors)::value, kRows = decltype(samples)::value;
        Floats sums[kRows][kVectors] = {};
        for (int o = 0; o < layer.outputs; ++o)
          for (int v = 0; v < kVectors; ++v) {
            const Floats weight = V::load(weights + o * layer.pitch + (vector + v) * kWidth);
            for (int r = 0; r < kRows; ++r) sums[r][v] += weight * slopes[(sample + r) * slope_pitch + o];
          }
        for (int r = 0; r < kRows; ++r)
          for (int v = 0; v < kVectors; ++v)
            V::store(x_slopes + (sample + r) * layer.pitch + (vector + v) * kWidth, sums[r][v]);
      });
    });
  }

  // SGD on weights and bias, which are pulled towards the anchors; bias may be null.
  static void update(const float* x, const float* slopes, std::size_t slope_pitch, const DenseShape& layer, int batch,
                     float* weights, float* bias, const float* weight_anchor, const float* bias_anchor, Sgd sgd) {
    in_blocks<2>(int(layer.pitch / kWidth), [&](auto vectors, int vector) {
      in_blocks<8>(layer.outputs, [&](auto outputs, int output) {
        constexpr int kVectors = decltype(vectors)::value, kRows = decltype(outputs)::value;
        Floats sums[kRows][kVectors] = {};
        for (int b = 0; b < batch; ++b)
          for (int v = 0; v < kVectors; ++v) {
            const Floats value = V::load(x + b * layer.pitch + (vector + v) * kWidth);
            for (int r = 0; r < kRows; ++r) sums[r][v] += value * slopes[b * slope_pitch + output + r];
          }
        for (int r = 0; r < kRows; ++r)
          for (int v = 0; v < kVectors; ++v) {
            const std::size_t at = (output + r) * layer.pitch + (vector + v) * kWidth;
            V::store(weights + at, stepped<Isa>(V::load(weights + at), sums[r][v], V::load(weight_anchor + at), sgd));
          }
      });
    });
    if (!bias) return;
    for (int o = 0; o < layer.outputs; ++o) {
      float sum = 0;
      for (int b = 0; b < batch; ++b) sum += slopes[b * slope_pitch + o];
      bias[o] = stepped<Isa>(bias[o], sum, bias_anchor[o], sgd);
    }
  }

 private:
  template <int Outputs, int Samples>
  [[gnu::always_inline]] static void forward_tile(const float* x, const float* weights, const float* bias,
                                                  std::size_t pitch, float* y, std::size_t y_pitch) {
    Floats sums[Samples][Outputs] = {};
    for (std::size_t k = 0; k < pitch; k += kWidth) {
      Floats weight[Outputs];
      for (int o = 0; o < Outputs; ++o) weight[o] = V::load(weights + o * pitch + k);
      for (int s = 0; s < Samples; ++s) {
        const Floats value = V::load(x + s * pitch + k);
        for (int o = 0; o < Outputs; ++o) sums[s][o] += value * weight[o];
      }
    }
    for (int s = 0; s < Samples; ++s)
      for (int o = 0; o < Outputs; ++o) y[s * y_pitch + o] = V::sum(sums[s][o]) + bias[o];
  }
};

template <class Isa>
void relu(float* values, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) values[i] = values[i] <= 0 ? 0.0f : values[i];  // NaN stays
}

// The slopes of what entered a ReLU, from what left it.
template <class Isa>
void relu_gradient(const float* left, std::size_t count, float* slopes) {
  for (std::size_t i = 0; i < count; ++i) slopes[i] = left[i] <= 0 ? 0.0f : slopes[i];
}

}  // namespace optigrad
