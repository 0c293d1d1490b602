// Which convolution serves which block: the direct one, or Winograd's where it pays. And the weights of the input
// gradient, which is a convolution too.
#pragma once

#include "convolution.hpp"
#include "winograd.hpp"

namespace optigrad {

template <class Isa>
struct ConvolutionKernels {
  decltype(&Convolution<Isa, 8, 8>::forward) forward;
  decltype(&Convolution<Isa, 8, 8>::weight_gradient) weight_gradient;
  // Of Winograd's: for weights before `forward` takes them, for the gradient that `weight_gradient` has summed up, and
  // the memory of both.
  decltype(&Winograd<Isa, 16, 16>::transform) transform = nullptr;
  decltype(&Winograd<Isa, 16, 16>::collect) collect = nullptr;
  decltype(&Winograd<Isa, 16, 16>::scratch_floats) scratch_floats = nullptr;

  bool transforms() const { return transform != nullptr; }
};

template <class Isa, int Stride, int Lanes>
ConvolutionKernels<Isa> convolution_kernels(bool even) {
  // Up to 8 channels are not worth the transforms.
  if constexpr (Stride >= 16 && Lanes >= 16) {
    using Tiled = Winograd<Isa, Stride, Lanes>;
    if (even)
      return {&Tiled::forward, &Tiled::weight_gradient, &Tiled::transform, &Tiled::collect, &Tiled::scratch_floats};
  }
  using Direct = Convolution<Isa, Stride, Lanes>;
  return {&Direct::forward, &Direct::weight_gradient};
}

template <class Isa, int Stride>
ConvolutionKernels<Isa> convolution_kernels(int lanes, bool even) {
  switch (lanes) {
    case 8: return convolution_kernels<Isa, Stride, 8>(even);
    case 16: return convolution_kernels<Isa, Stride, 16>(even);
    case 32: return convolution_kernels<Isa, Stride, 32>(even);
    default: return convolution_kernels<Isa, Stride, 64>(even);
  }
}

// For maps of height x width pixels, from `stride` floats a pixel to `lanes`.
template <class Isa>
ConvolutionKernels<Isa> find_convolution(int stride, int lanes, int height, int width) {
  const bool even = height % 2 == 0 && width % 2 == 0;  // tiles of 2x2 pixels fill the map
  switch (stride) {
    case 1: return convolution_kernels<Isa, 1>(lanes, even);
    case 3: return convolution_kernels<Isa, 3>(lanes, even);
    case 8: return convolution_kernels<Isa, 8>(lanes, even);
    case 16: return convolution_kernels<Isa, 16>(lanes, even);
    case 32: return convolution_kernels<Isa, 32>(lanes, even);
    default: return convolution_kernels<Isa, 64>(lanes, even);
  }
}

// The input gradient is itself a convolution, of the slopes with the taps in reverse order and the channels swapped.
template <class Isa>
void flip_weights(const float* weights, const BlockShape& block, float* flipped) {
  for (int tap = 0; tap < kTaps; ++tap)
    for (int lane = 0; lane < block.lanes; ++lane)
      for (int c = 0; c < block.in_stride; ++c)
        flipped[(std::size_t(kTaps - 1 - tap) * block.lanes + lane) * block.in_stride + c] =
            weights[(std::size_t(tap) * block.in_stride + c) * block.lanes + lane];
}

}  // namespace optigrad
