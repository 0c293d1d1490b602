// BatchNorm, ReLU and 2x2 max-pooling as one step, forwards and backwards, on channels-last maps.
//
// Fused, because each alone is a pass over memory with next to no arithmetic. BatchNorm becomes scale * y + shift;
// what the pooling window keeps is remembered (the winner and the value that entered BatchNorm there), so that the
// way back knows where the gradient goes without the normalised map, which is never stored.
#pragma once

#include <cmath>

#include "network.hpp"
#include "vectors.hpp"

namespace optigrad {

constexpr int kWindow = 4;       // pixels of a pooling window: 0 1 over 2 3
constexpr int kNoWinner = -1;    // ReLU passed nothing

// Per channel, arrays of `lanes`.
struct Normalisation {
  double *sums, *squares;        // of y - pilot, over the batch
  float* pilot;                  // a value of the channel: sums of differences from it do not cancel
  float *mean, *inverse_deviation;
  float *scale, *shift;          // the whole layer as scale * y + shift
  float *gamma_gradient, *beta_gradient;
  float *curvature, *offset;     // of the way back: dy = scale * dz - offset - curvature * y
  std::int32_t* real;            // all bits set in lanes that are channels, none in padding
};

// What the way back must know of one image; pooled pixels x lanes.
struct Pooled {
  float* peaks;          // y of the winner
  std::int8_t* winners;  // 0..3, or kNoWinner
};

template <class Isa, int Lanes>
struct BatchNormPool {
  static constexpr int kWidth = kWidthFor<Isa, Lanes>;
  static constexpr int kChunk = 256;  // values added up in float before they join the sum in double

  using V = Simd<Isa, kWidth>;
  using Floats = typename V::Floats;
  using Ints = typename V::Ints;

  // Adds the sums of one map to the batch's.
  static void accumulate(const float* y, int pixels, const Normalisation& norm) {
    for (int lane = 0; lane < Lanes; lane += kWidth)
      for (int first = 0; first < pixels; first += kChunk) {
        const int last = first + kChunk < pixels ? first + kChunk : pixels;
        accumulate_chunk(y + lane, first, last, V::load(norm.pilot + lane), norm.sums + lane, norm.squares + lane);
      }
  }

  // ReLU and pooling for the way there only, one row of windows.
  static void pool_row(const float* y, int map_width, int windows, const Normalisation& norm, float* out) {
    for (int x = 0; x < windows; ++x)
      for (int lane = 0; lane < Lanes; lane += kWidth) {
        const Window window(y + std::ptrdiff_t(2) * x * Lanes + lane, map_width, norm, lane);
        Floats best = window.z[0];
        for (int k = 1; k < kWindow; ++k) best = window.z[k] > best ? window.z[k] : best;
        best = window.is_nan() ? window.nan() : best;
        best = best <= Floats{} ? Floats{} : best;
        V::store(out + std::ptrdiff_t(x) * Lanes + lane, V::keep(best, V::load(norm.real + lane)));
      }
  }

  // The same, for training: a whole map, remembering what the way back needs.
  static void pool(const float* y, const BlockShape& block, const Normalisation& norm, float* out, int out_pitch,
                   Pooled pooled) {
    for (int row = 0; row < block.pooled_height; ++row)
      for (int x = 0; x < block.pooled_width; ++x) {
        const float* corner = y + (std::ptrdiff_t(2) * row * block.width + 2 * x) * Lanes;
        const std::ptrdiff_t at = (std::ptrdiff_t(row) * block.pooled_width + x) * Lanes;
        for (int lane = 0; lane < Lanes; lane += kWidth) {
          const Window window(corner + lane, block.width, norm, lane);
          Floats best = window.z[0], peak = window.y[0];
          Ints winner{};
          for (int k = 1; k < kWindow; ++k) {
            const Ints better = window.z[k] > best;  // strictly: of equals the first wins, as in PyTorch
            best = better ? window.z[k] : best;
            peak = better ? window.y[k] : peak;
            winner = better ? Ints{} + k : winner;
          }
          best = window.is_nan() ? window.nan() : best;
          const Ints dead = best <= Floats{};
          best = dead ? Floats{} : best;
          winner = dead ? Ints{} + kNoWinner : winner;
          V::store(pooled.peaks + at + lane, peak);
          V::store_narrowed(pooled.winners + at + lane, winner);
          V::store(out + (std::ptrdiff_t(row) * out_pitch + x) * Lanes + lane,
                   V::keep(best, V::load(norm.real + lane)));
        }
      }
  }

  // Adds one image's part of the gradients of beta and gamma, from the gradient of what was pooled.
  static void gradient_sums(const float* slopes, int pitch, const BlockShape& block, const Normalisation& norm,
                            Pooled pooled) {
    for (int lane = 0; lane < Lanes; lane += kWidth) {
      const Floats mean = V::load(norm.mean + lane), inverse = V::load(norm.inverse_deviation + lane);
      Floats beta{}, gamma{};
      for (int row = 0; row < block.pooled_height; ++row)
        for (int x = 0; x < block.pooled_width; ++x) {
          const std::ptrdiff_t at = (std::ptrdiff_t(row) * block.pooled_width + x) * Lanes + lane;
          const Floats slope = V::load(slopes + (std::ptrdiff_t(row) * pitch + x) * Lanes + lane);
          const Floats passed = V::load_widened(pooled.winners + at) >= Ints{} ? slope : Floats{};
          beta += passed;
          gamma += passed * ((V::load(pooled.peaks + at) - mean) * inverse);
        }
      V::store(norm.beta_gradient + lane, V::load(norm.beta_gradient + lane) + beta);
      V::store(norm.gamma_gradient + lane, V::load(norm.gamma_gradient + lane) + gamma);
    }
  }

  // The gradient of one map that entered BatchNorm, from that of what was pooled. `out` is the first pixel written.
  static void backward(const float* y, const float* slopes, int pitch, const BlockShape& block,
                       const Normalisation& norm, Pooled pooled, float* out, int out_pitch) {
    for (int row = 0; row < block.pooled_height; ++row)
      for (int x = 0; x < block.pooled_width; ++x) {
        const std::ptrdiff_t at = (std::ptrdiff_t(row) * block.pooled_width + x) * Lanes;
        for (int lane = 0; lane < Lanes; lane += kWidth) {
          const Floats slope = V::load(slopes + (std::ptrdiff_t(row) * pitch + x) * Lanes + lane);
          const Floats scaled = V::load(norm.scale + lane) * slope;
          const Ints winner = V::load_widened(pooled.winners + at + lane);
          for (int k = 0; k < kWindow; ++k) {
            const int line = 2 * row + k / 2, column = 2 * x + k % 2;
            const Floats value = V::load(y + (std::ptrdiff_t(line) * block.width + column) * Lanes + lane);
            const Floats passed = winner == Ints{} + k ? scaled : Floats{};
            V::store(out + (std::ptrdiff_t(line) * out_pitch + column) * Lanes + lane,
                     passed - through_statistics(value, norm, lane));
          }
        }
      }
    // A last odd row or column is in no window; it took part in the statistics all the same.
    for (int line = 0; line < block.height; ++line) {
      const int first = line < 2 * block.pooled_height ? 2 * block.pooled_width : 0;
      for (int column = first; column < block.width; ++column)
        for (int lane = 0; lane < Lanes; lane += kWidth) {
          const Floats value = V::load(y + (std::ptrdiff_t(line) * block.width + column) * Lanes + lane);
          V::store(out + (std::ptrdiff_t(line) * out_pitch + column) * Lanes + lane,
                   Floats{} - through_statistics(value, norm, lane));
        }
    }
  }

 private:
  struct Window {
    Floats y[kWindow], z[kWindow];

    [[gnu::always_inline]] Window(const float* corner, int map_width, const Normalisation& norm, int lane) {
      const Floats scale = V::load(norm.scale + lane), shift = V::load(norm.shift + lane);
      for (int k = 0; k < kWindow; ++k) {
        y[k] = V::load(corner + (std::ptrdiff_t(k / 2) * map_width + k % 2) * Lanes);
        z[k] = y[k] * scale + shift;
      }
    }

    // A comparison with NaN is false, so a maximum would drop it; PyTorch's pooling keeps it.
    [[gnu::always_inline]] Ints is_nan() const {
      return (z[0] != z[0]) | (z[1] != z[1]) | (z[2] != z[2]) | (z[3] != z[3]);
    }
    [[gnu::always_inline]] Floats nan() const { return (z[0] + z[1]) + (z[2] + z[3]); }
  };

  [[gnu::always_inline]] static Floats through_statistics(Floats value, const Normalisation& norm, int lane) {
    return V::load(norm.offset + lane) + V::load(norm.curvature + lane) * value;
  }

  static void accumulate_chunk(const float* y, int first, int last, Floats pilot, double* sums, double* squares) {
    constexpr int kChains = 4;  // independent sums, to hide the latency of an addition
    Floats sum[kChains] = {}, square[kChains] = {};
    int pixel = first;
    for (; pixel + kChains <= last; pixel += kChains)
      for (int i = 0; i < kChains; ++i) {
        const Floats difference = V::load(y + std::ptrdiff_t(pixel + i) * Lanes) - pilot;
        sum[i] += difference;
        square[i] += difference * difference;
      }
    for (; pixel < last; ++pixel) {
      const Floats difference = V::load(y + std::ptrdiff_t(pixel) * Lanes) - pilot;
      sum[0] += difference;
      square[0] += difference * difference;
    }
    const Floats total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    const Floats total_square = (square[0] + square[1]) + (square[2] + square[3]);
    for (int i = 0; i < kWidth; ++i) sums[i] += double(total[i]), squares[i] += double(total_square[i]);
  }
};

// Before the first map of a batch. The pilot must be finite, or an infinite mean would come out as NaN.
template <class Isa>
void begin_statistics(const float* first_pixel, int lanes, const Normalisation& norm) {
  for (int i = 0; i < lanes; ++i) {
    norm.sums[i] = norm.squares[i] = 0;
    norm.pilot[i] = std::isfinite(first_pixel[i]) ? first_pixel[i] : 0.0f;
  }
}

// After the last: the layer's scale and shift by the batch's statistics. The running ones move towards them by
// `momentum`; with 1 they are replaced, whatever they were. The running variance is the unbiased one, as in PyTorch.
template <class Isa>
void end_statistics(int lanes, double count, double epsilon, double momentum, const float* gamma, const float* beta,
                    const Normalisation& norm, float* running_mean, float* running_variance) {
  for (int i = 0; i < lanes; ++i) {
    const double difference = norm.sums[i] / count;
    const double biased = norm.squares[i] / count - difference * difference;
    const double variance = biased < 0 ? 0.0 : biased;  // rounding; NaN stays NaN
    const double mean = double(norm.pilot[i]) + difference;
    norm.mean[i] = float(mean);
    norm.inverse_deviation[i] = float(1 / std::sqrt(variance + epsilon));
    norm.scale[i] = gamma[i] * norm.inverse_deviation[i];
    norm.shift[i] = beta[i] - norm.mean[i] * norm.scale[i];
    const double unbiased = variance * (count / (count - 1));
    const bool replace = momentum == 1;
    running_mean[i] = float(replace ? mean : (1 - momentum) * running_mean[i] + momentum * mean);
    running_variance[i] = float(replace ? unbiased : (1 - momentum) * running_variance[i] + momentum * unbiased);
  }
}

// The layer by running statistics. A hostile update may have pushed a shared variance below zero: it counts as zero.
template <class Isa>
void use_running_statistics(int lanes, double epsilon, const float* gamma, const float* beta,
                            const float* running_mean, const float* running_variance, const Normalisation& norm) {
  for (int i = 0; i < lanes; ++i) {
    const double variance = running_variance[i] < 0 ? 0.0 : double(running_variance[i]);
    norm.scale[i] = float(gamma[i] / std::sqrt(variance + epsilon));
    norm.shift[i] = beta[i] - running_mean[i] * norm.scale[i];
  }
}

// Between `gradient_sums` and `backward`: how a slope acts on all pixels by way of mean and variance.
template <class Isa>
void spread_gradient(int lanes, double count, const Normalisation& norm) {
  for (int i = 0; i < lanes; ++i) {
    const float mean_slope = norm.scale[i] * float(norm.beta_gradient[i] / count);
    const float mean_turn = norm.scale[i] * float(norm.gamma_gradient[i] / count);
    norm.curvature[i] = mean_turn * norm.inverse_deviation[i];
    norm.offset[i] = mean_slope - norm.curvature[i] * norm.mean[i];
  }
}

template <class Isa>
struct BatchNormKernels {
  decltype(&BatchNormPool<Isa, 8>::accumulate) accumulate;
  decltype(&BatchNormPool<Isa, 8>::pool_row) pool_row;
  decltype(&BatchNormPool<Isa, 8>::pool) pool;
  decltype(&BatchNormPool<Isa, 8>::gradient_sums) gradient_sums;
  decltype(&BatchNormPool<Isa, 8>::backward) backward;
};

template <class Isa, int Lanes>
BatchNormKernels<Isa> batchnorm_kernels() {
  using Layer = BatchNormPool<Isa, Lanes>;
  return {&Layer::accumulate, &Layer::pool_row, &Layer::pool, &Layer::gradient_sums, &Layer::backward};
}

template <class Isa>
BatchNormKernels<Isa> find_batchnorm(int lanes) {
  switch (lanes) {
    case 8: return batchnorm_kernels<Isa, 8>();
    case 16: return batchnorm_kernels<Isa, 16>();
    case 32: return batchnorm_kernels<Isa, 32>();
    default: return batchnorm_kernels<Isa, 64>();
  }
}

}  // namespace optigrad
