// 3x3 convolution by Winograd's F(2x2, 3x3): 16 multiplications for four pixels of output where the direct form has 36.
//
// In one dimension two outputs of three taps g over four inputs d are
//   m0 = (d0 - d2) g0,  m1 = (d1 + d2)(g0 + g1 + g2)/2,  m2 = (d2 - d1)(g0 - g1 + g2)/2,  m3 = (d1 - d3) g2,
//   y0 = m0 + m1 + m2,  y1 = m1 - m2 - m3:
// four products instead of six. Along rows and then columns (Lavin & Gray 2016, arXiv 1509.09308) that is 2x2 outputs,
// a *tile*, of a 4x4 *patch*. Its *points* are the 16 places at which products are taken; for each point, the sum over
// the input channels is a matrix product, (tiles x channels) by (channels x lanes), and that is where the time goes.
// The weight gradient takes the same steps transposed.
//
// Sums of a few values, so that little precision is lost. A NaN reaches the pixels that it reaches in the direct form;
// an infinity comes out as NaN; at the edge of a map both reach taps of the weight gradient too that they do not meet.
#pragma once

#include "convolution.hpp"

namespace optigrad {

// Buffers are (point, tile, lane) and (point, channel, lane), the points of a patch row by row.

// Tiles that are transformed before products are taken, in whole rows; one row may have more.
constexpr int kTilesAtOnce = 64;

template <class Isa, int Stride, int Lanes>
struct Winograd {
  static constexpr int kWidth = kWidthFor<Isa, Lanes>;
  // Vectors of output lanes in a block of products that stays in registers, and tiles, which fill the rest of them.
  static constexpr int kVectors = Lanes / kWidth < 2 ? 1 : Lanes / kWidth < 4 ? 2 : 4;
  static constexpr int kMaxTiles = Isa::accumulators / kVectors;
  // From one point of the weights to the next.
  static constexpr std::size_t kWeightsApart = points_apart(Stride, Lanes);

  using V = Simd<Isa, kWidth>;
  using Floats = typename V::Floats;

  // Rows of tiles that are transformed together.
  static int rows_at_once(int height, int width) {
    const int fitting = kTilesAtOnce / (width / 2) < 1 ? 1 : kTilesAtOnce / (width / 2);
    return fitting < height / 2 ? fitting : height / 2;
  }

  // Floats of `scratch` for maps of this size; as many if Stride and Lanes change places.
  static std::size_t scratch_floats(int height, int width) {
    const int tiles = rows_at_once(height, width) * (width / 2);
    return kPoints * (points_apart(tiles, Stride) + points_apart(tiles, Lanes));
  }

  // (tap, Stride, Lanes) to (point, Stride, Lanes): G g Gᵀ.
  static void transform(const float* weights, float* points) {
    constexpr std::size_t size = std::size_t(Stride) * Lanes;
    for (std::size_t at = 0; at < size; at += kWidth) {
      Floats rows[kPatch][kKernel];
      for (int x = 0; x < kKernel; ++x) {
        const float* tap = weights + x * size + at;
        const Floats top = V::load(tap), middle = V::load(tap + kKernel * size),
                     bottom = V::load(tap + 2 * kKernel * size);
        rows[0][x] = top, rows[3][x] = bottom;
        rows[1][x] = 0.5f * (top + bottom + middle), rows[2][x] = 0.5f * (top + bottom - middle);
      }
      for (int y = 0; y < kPatch; ++y) {
        const Floats left = rows[y][0], middle = rows[y][1], right = rows[y][2];
        const Floats points_of_row[4] = {left, 0.5f * (left + right + middle), 0.5f * (left + right - middle), right};
        for (int x = 0; x < kPatch; ++x) V::store(points + (kPatch * y + x) * kWeightsApart + at, points_of_row[x]);
      }
    }
  }

  // gradient (tap, Stride, Lanes) = Gᵀ points G, the way back of `transform`.
  static void collect(const float* points, float* gradient) {
    constexpr std::size_t size = std::size_t(Stride) * Lanes;
    for (std::size_t at = 0; at < size; at += kWidth) {
      Floats rows[kPatch][kKernel];
      for (int y = 0; y < kPatch; ++y) {
        Floats point[kPatch];
        for (int x = 0; x < kPatch; ++x) point[x] = V::load(points + (kPatch * y + x) * kWeightsApart + at);
        const Floats half_sum = 0.5f * (point[1] + point[2]);
        rows[y][0] = point[0] + half_sum, rows[y][1] = 0.5f * (point[1] - point[2]), rows[y][2] = half_sum + point[3];
      }
      for (int x = 0; x < kKernel; ++x) {
        const Floats half_sum = 0.5f * (rows[1][x] + rows[2][x]);
        float* tap = gradient + x * size + at;
        V::store(tap, rows[0][x] + half_sum);
        V::store(tap + kKernel * size, 0.5f * (rows[1][x] - rows[2][x]));
        V::store(tap + 2 * kKernel * size, half_sum + rows[3][x]);
      }
    }
  }

  // See Convolution::forward; height and width are even, `weights` are transformed.
  static void forward(const float* in, int pitch, int channels, const float* weights, const float* bias, float* out,
                      int out_pitch, int height, int width, float* scratch) {
    const int across = width / 2, at_once = rows_at_once(height, width);
    float* products = scratch + kPoints * points_apart(at_once * across, Stride);
    for (int row = 0; row < height / 2; row += at_once) {
      const int rows = row + at_once <= height / 2 ? at_once : height / 2 - row, tiles = rows * across;
      patches(in + std::ptrdiff_t(2) * row * pitch * Stride, pitch, rows, across, scratch);
      for (int point = 0; point < kPoints; ++point)
        multiply(scratch + point * points_apart(tiles, Stride), channels, weights + point * kWeightsApart,
                 products + point * points_apart(tiles, Lanes), tiles);
      pixels(products, bias, rows, across, out + std::ptrdiff_t(2) * row * out_pitch * Lanes, out_pitch);
    }
  }

  // See Convolution::weight_gradient; `gradient` is of the transformed weights.
  static void weight_gradient(const Maps& in, const Maps& out, int images, int height, int width, float* gradient,
                              float* scratch) {
    const int across = width / 2, at_once = rows_at_once(height, width);
    float* slopes = scratch + kPoints * points_apart(at_once * across, Stride);
    for (int image = 0; image < images; ++image)
      for (int row = 0; row < height / 2; row += at_once) {
        const int rows = row + at_once <= height / 2 ? at_once : height / 2 - row, tiles = rows * across;
        patches(in.first + image * in.image + std::ptrdiff_t(2) * row * in.pitch * Stride, in.pitch, rows, across,
                scratch);
        slope_points(out.first + image * out.image + std::ptrdiff_t(2) * row * out.pitch * Lanes, out.pitch, rows,
                     across, slopes);
        for (int point = 0; point < kPoints; ++point)
          add_products(scratch + point * points_apart(tiles, Stride), slopes + point * points_apart(tiles, Lanes),
                       tiles, gradient + point * kWeightsApart);
      }
  }

 private:
  using InV = Simd<Isa, kWidthFor<Isa, Stride>>;
  using InFloats = typename InV::Floats;

  // Four values to the points of a patch along one axis, Bᵀd.
  [[gnu::always_inline]] static void patch_points(InFloats& a, InFloats& b, InFloats& c, InFloats& d) {
    const InFloats first = a - c, second = b + c, third = c - b, fourth = b - d;
    a = first, b = second, c = third, d = fourth;
  }

  // Patches (rows, across) of a padded map, which overlap by two pixels, to (point, tile, Stride): Bᵀ d B.
  static void patches(const float* in, int pitch, int rows, int across, float* points) {
    const std::size_t apart = points_apart(rows * across, Stride);
    for (int row = 0; row < rows; ++row)
      for (int x = 0; x < across; ++x) {
        const float* corner = in + (std::ptrdiff_t(2) * row * pitch + 2 * x) * Stride;
        float* to = points + (std::size_t(row) * across + x) * Stride;
        for (int c = 0; c < Stride; c += kWidthFor<Isa, Stride>) {
          InFloats d[kPatch][kPatch];
          for (int i = 0; i < kPatch; ++i) {
            for (int j = 0; j < kPatch; ++j) d[i][j] = InV::load(corner + (std::ptrdiff_t(i) * pitch + j) * Stride + c);
            patch_points(d[i][0], d[i][1], d[i][2], d[i][3]);
          }
          for (int j = 0; j < kPatch; ++j) {
            patch_points(d[0][j], d[1][j], d[2][j], d[3][j]);
            for (int i = 0; i < kPatch; ++i) InV::store(to + (kPatch * i + j) * apart + c, d[i][j]);
          }
        }
      }
  }

  // Products (point, tile, Lanes) to pixels: Aᵀ m A + bias.
  static void pixels(const float* products, const float* bias, int rows, int across, float* out, int out_pitch) {
    const std::size_t apart = points_apart(rows * across, Lanes);
    for (int row = 0; row < rows; ++row)
      for (int x = 0; x < across; ++x) {
        const float* from = products + (std::size_t(row) * across + x) * Lanes;
        float* corner = out + (std::ptrdiff_t(2) * row * out_pitch + 2 * x) * Lanes;
        for (int lane = 0; lane < Lanes; lane += kWidth) {
          Floats top[kPatch], bottom[kPatch];
          for (int j = 0; j < kPatch; ++j) {
            Floats product[kPatch];
            for (int i = 0; i < kPatch; ++i) product[i] = V::load(from + (kPatch * i + j) * apart + lane);
            top[j] = product[0] + product[1] + product[2], bottom[j] = product[1] - product[2] - product[3];
          }
          const Floats shift = V::load(bias + lane);
          float* below = corner + std::ptrdiff_t(out_pitch) * Lanes;
          V::store(corner + lane, top[0] + top[1] + top[2] + shift);
          V::store(corner + Lanes + lane, top[1] - top[2] - top[3] + shift);
          V::store(below + lane, bottom[0] + bottom[1] + bottom[2] + shift);
          V::store(below + Lanes + lane, bottom[1] - bottom[2] - bottom[3] + shift);
        }
      }
  }

  // Slopes of pixels to those of the products, (point, tile, Lanes): A s Aᵀ, the way back of `pixels`.
  static void slope_points(const float* slopes, int pitch, int rows, int across, float* points) {
    const std::size_t apart = points_apart(rows * across, Lanes);
    for (int row = 0; row < rows; ++row)
      for (int x = 0; x < across; ++x) {
        const float* corner = slopes + (std::ptrdiff_t(2) * row * pitch + 2 * x) * Lanes;
        const float* below = corner + std::ptrdiff_t(pitch) * Lanes;
        float* to = points + (std::size_t(row) * across + x) * Lanes;
        for (int lane = 0; lane < Lanes; lane += kWidth) {
          const Floats a = V::load(corner + lane), b = V::load(corner + Lanes + lane), c = V::load(below + lane),
                       d = V::load(below + Lanes + lane);
          const Floats left[4] = {a, a + c, a - c, -c}, right[4] = {b, b + d, b - d, -d};
          for (int i = 0; i < kPatch; ++i) {
            V::store(to + kPatch * i * apart + lane, left[i]);
            V::store(to + (kPatch * i + 1) * apart + lane, left[i] + right[i]);
            V::store(to + (kPatch * i + 2) * apart + lane, left[i] - right[i]);
            V::store(to + (kPatch * i + 3) * apart + lane, -right[i]);
          }
        }
      }
  }

  // products (tiles, Lanes) = patches (tiles, Stride) x weights (Stride, Lanes); the first `channels` count.
  static void multiply(const float* patches, int channels, const float* weights, float* products, int tiles) {
    const int blocks = (tiles + kMaxTiles - 1) / kMaxTiles;
    multiply_by<kMaxTiles>((tiles + blocks - 1) / blocks, patches, channels, weights, products, tiles);
  }

  template <int Tiles>
  static void multiply_by(int wanted, const float* patches, int channels, const float* weights, float* products,
                          int tiles) {
    if constexpr (Tiles > 1) {
      if (wanted < Tiles) return multiply_by<Tiles - 1>(wanted, patches, channels, weights, products, tiles);
    }
    for (int lane = 0; lane < Lanes; lane += kVectors * kWidth)
      for (int first = 0; first < tiles; first += Tiles) {
        const int tile = first + Tiles <= tiles ? first : tiles - Tiles;  // the last block moves back, see Convolution
        multiply_block<Tiles>(patches + std::size_t(tile) * Stride, channels, weights + lane,
                              products + std::size_t(tile) * Lanes + lane);
      }
  }

  template <int Tiles>
  [[gnu::always_inline]] static void multiply_block(const float* patches, int channels, const float* weights,
                                                    float* products) {
    Floats sums[Tiles][kVectors] = {};
    for (int c = 0; c < channels; ++c) {
      Floats weight[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) weight[v] = V::load(weights + c * Lanes + v * kWidth);
#pragma GCC unroll 16
      for (int tile = 0; tile < Tiles; ++tile) {
        const float value = patches[tile * Stride + c];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[tile][v] += weight[v] * value;
      }
    }
    for (int tile = 0; tile < Tiles; ++tile)
      for (int v = 0; v < kVectors; ++v) V::store(products + tile * Lanes + v * kWidth, sums[tile][v]);
  }

  static constexpr int kGradientVectors = Lanes / kWidth < 2 ? 1 : 2;
  static constexpr int kGradientChannels = Isa::accumulators / kGradientVectors < 8 ? 4 : 8;

  // gradient (Stride, Lanes) += patches (tiles, Stride)ᵀ x slopes (tiles, Lanes).
  static void add_products(const float* patches, const float* slopes, int tiles, float* gradient) {
    for (int c = 0; c < Stride; c += kGradientChannels)
      for (int lane = 0; lane < Lanes; lane += kGradientVectors * kWidth) {
        Floats sums[kGradientChannels][kGradientVectors];
        float* block = gradient + std::size_t(c) * Lanes + lane;
        for (int i = 0; i < kGradientChannels; ++i)
          for (int v = 0; v < kGradientVectors; ++v) sums[i][v] = V::load(block + i * Lanes + v * kWidth);
        for (int tile = 0; tile < tiles; ++tile) {
          Floats slope[kGradientVectors];
          for (int v = 0; v < kGradientVectors; ++v)
            slope[v] = V::load(slopes + std::size_t(tile) * Lanes + lane + v * kWidth);
#pragma GCC unroll 8
          for (int i = 0; i < kGradientChannels; ++i) {
            const float value = patches[std::size_t(tile) * Stride + c + i];
#pragma GCC unroll 2
            for (int v = 0; v < kGradientVectors; ++v) sums[i][v] += slope[v] * value;
          }
        }
        for (int i = 0; i < kGradientChannels; ++i)
          for (int v = 0; v < kGradientVectors; ++v) V::store(block + i * Lanes + v * kWidth, sums[i][v]);
      }
  }
};

}  // namespace optigrad
