// A block and the dense head, with their buffers: what training and evaluation have in common.
#pragma once

#include "arena.hpp"
#include "batchnorm.hpp"
#include "convolution_kernels.hpp"
#include "dense.hpp"
#include "model.hpp"

namespace optigrad {

template <class Isa>
Normalisation make_normalisation(const BlockShape& block, Arena& arena) {
  Normalisation norm;
  norm.sums = arena.doubles(block.lanes);
  norm.squares = arena.doubles(block.lanes);
  float** const vectors[] = {&norm.pilot, &norm.mean, &norm.inverse_deviation, &norm.scale, &norm.shift,
                             &norm.gamma_gradient, &norm.beta_gradient, &norm.curvature, &norm.offset};
  for (float** vector : vectors) *vector = arena.floats(block.lanes);
  norm.real = arena.ints(block.lanes);
  return norm;
}

// One block of one model: shape, kernels, tensors.
template <class Isa>
struct Block {
  BlockShape shape;
  ConvolutionKernels<Isa> convolution;
  BatchNormKernels<Isa> batchnorm;
  Normalisation norm;
  float *weight, *bias, *gamma, *beta, *running_mean, *running_variance;
  double epsilon, momentum;
  float *points, *scratch;  // of Winograd's convolution: transformed weights, and memory; null for the direct one

  Block(const Network& network, const Shape& whole, const Model& model, int index, Arena& arena)
      : shape(whole.blocks[index]),
        convolution(find_convolution<Isa>(shape.in_stride, shape.lanes, shape.height, shape.width)),
        batchnorm(find_batchnorm<Isa>(shape.lanes)),
        norm(make_normalisation<Isa>(shape, arena)),
        weight(model.block(index, kWeight)),
        bias(model.block(index, kBias)),
        gamma(model.block(index, kGamma)),
        beta(model.block(index, kBeta)),
        running_mean(model.block(index, kRunningMean)),
        running_variance(model.block(index, kRunningVariance)),
        epsilon(network.epsilon[index]),
        momentum(network.momentum[index]),
        points(convolution.transforms() ? arena.floats(shape.points()) : nullptr),
        scratch(convolution.transforms() ? arena.floats(convolution.scratch_floats(shape.height, shape.width))
                                         : nullptr) {}

  // Marks the lanes that are channels; needs memory.
  void mark_channels() const {
    for (int lane = 0; lane < shape.lanes; ++lane) norm.real[lane] = lane < shape.channels ? -1 : 0;
  }

  // Before `convolve`, whenever the weights have changed.
  void prepare() const {
    if (convolution.transforms()) convolution.transform(weight, points);
  }

  // `rows` rows of the output map, from row `first` of one padded image; even numbers where it is Winograd's.
  void convolve(const float* in, int first, int rows, float* out) const {
    convolution.forward(in + std::ptrdiff_t(first) * shape.padded_width() * shape.in_stride, shape.padded_width(),
                        shape.in_channels, points ? points : weight, bias, out, shape.width, rows, shape.width,
                        scratch);
  }

  void finish_statistics(double images, double with_momentum) const {
    end_statistics<Isa>(shape.lanes, images * shape.height * shape.width, epsilon, with_momentum, gamma, beta, norm,
                        running_mean, running_variance);
  }

  // Where the first pixel lies inside the border of a padded map with `stride` floats a pixel.
  static std::ptrdiff_t inside(int padded_width, int stride) { return (std::ptrdiff_t(padded_width) + 1) * stride; }
};

// Copies an image (C, H, W) into the inside of a padded channels-last one.
template <class Isa>
void load_image(const float* image, const BlockShape& block, float* padded) {
  const int channels = block.in_channels;
  for (int c = 0; c < channels; ++c)
    for (int y = 0; y < block.height; ++y) {
      const float* row = image + (std::ptrdiff_t(c) * block.height + y) * block.width;
      float* to = padded + (std::ptrdiff_t(y + 1) * block.padded_width() + 1) * channels + c;
      if (channels == 1)
        std::memcpy(to, row, block.width * sizeof(float));
      else
        for (int x = 0; x < block.width; ++x) to[std::ptrdiff_t(x) * channels] = row[x];
    }
}

// The dense layers, and their activations for `capacity` samples.
template <class Isa>
struct Head {
  const Shape& shape;
  const Model& model;
  float *features, *hidden, *logits;
  std::size_t logit_pitch;

  Head(const Shape& whole, const Model& of, int capacity, Arena& arena)
      : shape(whole),
        model(of),
        features(arena.floats(capacity * whole.feature_pitch())),
        hidden(arena.floats(whole.has_hidden ? capacity * whole.output.pitch : 0)),
        logits(arena.floats(capacity * round_up(std::size_t(whole.output.outputs), kRowAlignment))),
        logit_pitch(round_up(std::size_t(whole.output.outputs), kRowAlignment)) {}

  void forward(int batch) const {
    if (shape.has_hidden) {
      Dense<Isa>::forward(features, model[kHiddenWeight], model[kHiddenBias], shape.hidden, batch, hidden,
                          shape.output.pitch);
      relu<Isa>(hidden, batch * shape.output.pitch);
    }
    Dense<Isa>::forward(shape.has_hidden ? hidden : features, model[kOutputWeight], model[kOutputBias], shape.output,
                        batch, logits, logit_pitch);
  }
};

}  // namespace optigrad
