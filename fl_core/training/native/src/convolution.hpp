// 3x3 convolution over channels-last maps, and its weight gradient.
//
// The direct form: a tile of output pixels stays in registers while the taps and input channels go by. Each step
// loads one vector of weights (the output lanes of one input channel) and multiplies it by one broadcast value per
// pixel of the tile. Nothing is copied into columns, so a map that lies in the cache is read from there only.
#pragma once

#include "network.hpp"
#include "vectors.hpp"

namespace optigrad {

// Maps of several images. `first` points to the upper left corner of what is read or written.
struct Maps {
  float* first;
  int pitch;            // pixels from one row to the next
  std::size_t image;    // floats from one image to the next
};

template <class Isa, int Stride, int Lanes>
struct Convolution {
  static constexpr int kWidth = kWidthFor<Isa, Lanes>;
  static constexpr int kVectors = Lanes / kWidth < 2 ? 1 : 2;  // of output lanes in a tile
  static constexpr int kTileLanes = kVectors * kWidth;
  // With one vector a pixel, two rows of pixels are needed to keep the multiply-add units busy on narrow maps.
  static constexpr int kRows = kVectors == 1 ? 2 : 1;
  static constexpr int kMaxColumns = Isa::accumulators / (kRows * kVectors);

  using V = Simd<Isa, kWidth>;
  using Floats = typename V::Floats;

  // One tile: `kRows` x `Columns` pixels, `kTileLanes` output lanes.
  template <int Columns>
  [[gnu::always_inline]] static void tile(const float* in, int pitch, int channels, const float* weights,
                                          const float* bias, float* out, int out_pitch) {
    Floats sums[kRows][Columns][kVectors];
    for (int r = 0; r < kRows; ++r)
      for (int p = 0; p < Columns; ++p)
        for (int v = 0; v < kVectors; ++v) sums[r][p][v] = V::load(bias + v * kWidth);
    for (int ky = 0; ky < kKernel; ++ky)
      for (int kx = 0; kx < kKernel; ++kx) {
        const float* pixels = in + (std::ptrdiff_t(ky) * pitch + kx) * Stride;
        const float* tap = weights + (ky * kKernel + kx) * Stride * Lanes;
        for (int c = 0; c < channels; ++c) {
          Floats weight[kVectors];
          for (int v = 0; v < kVectors; ++v) weight[v] = V::load(tap + c * Lanes + v * kWidth);
#pragma GCC unroll 2
          for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
            for (int p = 0; p < Columns; ++p) {
              const float value = pixels[(std::ptrdiff_t(r) * pitch + p) * Stride + c];
#pragma GCC unroll 2
              for (int v = 0; v < kVectors; ++v) sums[r][p][v] += weight[v] * value;
            }
        }
      }
    for (int r = 0; r < kRows; ++r)
      for (int p = 0; p < Columns; ++p)
        for (int v = 0; v < kVectors; ++v)
          V::store(out + (std::ptrdiff_t(r) * out_pitch + p) * Lanes + v * kWidth, sums[r][p][v]);
  }

  // A map in tiles of `Columns`. The last tile of a row, and the last of the rows, is moved back to end at the edge:
  // it computes a few pixels again, to the same values, and no size needs a kernel of its own.
  template <int Columns>
  static void map(const float* in, int pitch, int channels, const float* weights, const float* bias, float* out,
                  int out_pitch, int height, int width) {
    if constexpr (Stride < 8) channels = Stride;  // images have no padding lanes: let the compiler unroll
    for (int lane = 0; lane < Lanes; lane += kTileLanes)
      for (int row = 0; row < height; row += kRows) {
        const int y = row + kRows <= height ? row : height - kRows;
        for (int column = 0; column < width; column += Columns) {
          const int x = column + Columns <= width ? column : width - Columns;
          tile<Columns>(in + (std::ptrdiff_t(y) * pitch + x) * Stride, pitch, channels, weights + lane, bias + lane,
                        out + (std::ptrdiff_t(y) * out_pitch + x) * Lanes + lane, out_pitch);
        }
      }
  }

  template <int Columns>
  static void map_by(int columns, const float* in, int pitch, int channels, const float* weights, const float* bias,
                     float* out, int out_pitch, int height, int width) {
    if constexpr (Columns > 2) {
      if (columns < Columns)
        return map_by<Columns - 1>(columns, in, pitch, channels, weights, bias, out, out_pitch, height, width);
    }
    map<Columns>(in, pitch, channels, weights, bias, out, out_pitch, height, width);
  }

  // out = convolution(in) + bias for a map of height x width pixels, both at least 2.
  //
  // in: padded map, upper left corner of the border. weights: (tap, Stride, Lanes). Only the first `channels` of a
  // pixel are read: what a padding lane holds never matters. `scratch` is not used: Winograd's has it.
  static void forward(const float* in, int pitch, int channels, const float* weights, const float* bias, float* out,
                      int out_pitch, int height, int width, float* /*scratch*/) {
    const int tiles = (width + kMaxColumns - 1) / kMaxColumns;
    const int columns = (width + tiles - 1) / tiles;
    map_by<kMaxColumns>(columns, in, pitch, channels, weights, bias, out, out_pitch, height, width);
  }

  // Blocking of the weight gradient: `kTapRows` x `kRun` sums of `kGradientVectors` vectors stay in registers while
  // all pixels go by. The three taps of a row and their channels are one run of 3 * Stride floats in the map.
  static constexpr int kLaneVectors = Lanes / kWidth;
  static constexpr int kGradientVectors = kLaneVectors < Isa::gradient_vectors ? kLaneVectors : Isa::gradient_vectors;
  static constexpr int kTapRows = Stride == 1 ? kKernel : 1;
  static constexpr int kRun = Stride < 4 ? kKernel * Stride : 12;
  static_assert(kKernel * Stride % kRun == 0, "runs must cover the taps of a row");

  static void weight_gradient_block(const Maps& in, const Maps& out, int images, int height, int width,
                                    float* gradient) {
    Floats sums[kTapRows][kRun][kGradientVectors];
    for (int k = 0; k < kTapRows; ++k)
      for (int i = 0; i < kRun; ++i)
        for (int v = 0; v < kGradientVectors; ++v)
          sums[k][i][v] = V::load(gradient + (k * kKernel * Stride + i) * Lanes + v * kWidth);
    for (int image = 0; image < images; ++image)
      for (int y = 0; y < height; ++y) {
        const float* pixels = in.first + image * in.image + std::ptrdiff_t(y) * in.pitch * Stride;
        const float* slopes = out.first + image * out.image + std::ptrdiff_t(y) * out.pitch * Lanes;
        for (int x = 0; x < width; ++x) {
          Floats slope[kGradientVectors];
          for (int v = 0; v < kGradientVectors; ++v) slope[v] = V::load(slopes + x * Lanes + v * kWidth);
#pragma GCC unroll 3
          for (int k = 0; k < kTapRows; ++k)
#pragma GCC unroll 16
            for (int i = 0; i < kRun; ++i) {
              const float value = pixels[(std::ptrdiff_t(k) * in.pitch + x) * Stride + i];
#pragma GCC unroll 2
              for (int v = 0; v < kGradientVectors; ++v) sums[k][i][v] += slope[v] * value;
            }
        }
      }
    for (int k = 0; k < kTapRows; ++k)
      for (int i = 0; i < kRun; ++i)
        for (int v = 0; v < kGradientVectors; ++v)
          V::store(gradient + (k * kKernel * Stride + i) * Lanes + v * kWidth, sums[k][i][v]);
  }

  // gradient (tap, Stride, Lanes) += sum over pixels of in (padded, from its corner) times the slopes `out`.
  static void weight_gradient(const Maps& in, const Maps& out, int images, int height, int width, float* gradient,
                              float* /*scratch*/) {
    for (int ky = 0; ky < kKernel; ky += kTapRows)
      for (int first = 0; first < kKernel * Stride; first += kRun)
        for (int lane = 0; lane < Lanes; lane += kGradientVectors * kWidth) {
          const Maps from = {in.first + std::ptrdiff_t(ky) * in.pitch * Stride + first, in.pitch, in.image};
          const Maps to = {out.first + lane, out.pitch, out.image};
          weight_gradient_block(from, to, images, height, width,
                                gradient + (ky * kKernel * Stride + first) * Lanes + lane);
        }
  }
};

}  // namespace optigrad
