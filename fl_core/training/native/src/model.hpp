// A model in the layout of the kernels, and its way from and to PyTorch's flat vectors.
//
// Convolution weights are (tap, input channel, output lane): the lanes of one input channel are one vector load.
// Dense weights are (output, row * column * lane): images are channels-last here and channels-first in PyTorch.
#pragma once

#include "arena.hpp"
#include "network.hpp"

namespace optigrad {

// A tensor as three nested axes, in PyTorch's order, with the strides that they have here.
struct Packed {
  float* data = nullptr;
  std::size_t floats = 0;  // with the padding
  int sizes[3] = {0, 1, 1};
  std::ptrdiff_t strides[3] = {1, 0, 0};
};

struct Model {
  Model(const Shape& shape, Arena& arena);

  float* operator[](int tensor) const { return tensors[tensor].data; }
  float* block(int index, BlockTensor tensor) const { return tensors[index * kBlockTensors + tensor].data; }

  Packed tensors[kTensors];
};

// Fills `model` from the flat vectors; lanes and columns that are padding become zero.
void unpack(const Network& network, const float* shared, const float* local, Model& model);

// The inverse, in two parts: trained minus `shared`, and the local tensors as they are.
void pack_updates(const Network& network, const Model& model, const float* shared, float* updates);
void pack_local(const Network& network, const Model& model, float* local);

}  // namespace optigrad
