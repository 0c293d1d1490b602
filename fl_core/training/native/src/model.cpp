#include "model.hpp"

namespace optigrad {
namespace {

// Calls `visit(flat index, packed index)` for every element of a tensor.
template <class Visit>
void for_each_element(const Packed& tensor, const Visit& visit) {
  std::size_t flat = 0;
  for (int i = 0; i < tensor.sizes[0]; ++i)
    for (int j = 0; j < tensor.sizes[1]; ++j) {
      const std::ptrdiff_t row = i * tensor.strides[0] + j * tensor.strides[1];
      for (int k = 0; k < tensor.sizes[2]; ++k) visit(flat++, row + k * tensor.strides[2]);
    }
}

Packed vector(Arena& arena, int size, std::size_t capacity) {
  return {arena.floats(capacity), capacity, {size, 1, 1}, {1, 0, 0}};
}

}  // namespace

Model::Model(const Shape& shape, Arena& arena) {
  for (int i = 0; i < kBlocks; ++i) {
    const BlockShape& block = shape.blocks[i];
    Packed* tensor = tensors + i * kBlockTensors;
    const std::ptrdiff_t channel = block.lanes, tap = std::ptrdiff_t(block.in_stride) * block.lanes;
    tensor[kWeight] = {arena.floats(block.weights()), block.weights(),
                       {block.channels, block.in_channels, kTaps}, {1, channel, tap}};
    for (int t = kBias; t < kBlockTensors; ++t) tensor[t] = vector(arena, block.channels, block.lanes);
  }
  const BlockShape& last = shape.blocks[kBlocks - 1];
  const int pixels = last.pooled_height * last.pooled_width;
  const auto dense = [&](const DenseShape& layer, bool sees_map) -> Packed {
    const std::size_t floats = layer.outputs * layer.pitch;
    const std::ptrdiff_t pitch = std::ptrdiff_t(layer.pitch);
    if (sees_map) return {arena.floats(floats), floats, {layer.outputs, last.channels, pixels}, {pitch, 1, last.lanes}};
    return {arena.floats(floats), floats, {layer.outputs, layer.inputs, 1}, {pitch, 1, 0}};
  };
  tensors[kHiddenWeight] = dense(shape.hidden, true);
  tensors[kHiddenBias] = vector(arena, shape.hidden.outputs, shape.hidden.outputs);
  tensors[kOutputWeight] = dense(shape.output, !shape.has_hidden);
  tensors[kOutputBias] = vector(arena, shape.output.outputs, shape.output.outputs);
}

void unpack(const Network& network, const float* shared, const float* local, Model& model) {
  for (int t = 0; t < kTensors; ++t) {
    std::memset(model[t], 0, model.tensors[t].floats * sizeof(float));
    const TensorPlace place = network.tensors[t];
    if (place.holder == Holder::absent) continue;
    const float* source = (place.holder == Holder::shared ? shared : local) + place.offset;
    float* target = model[t];
    for_each_element(model.tensors[t], [&](std::size_t flat, std::ptrdiff_t at) { target[at] = source[flat]; });
  }
}

void pack_updates(const Network& network, const Model& model, const float* shared, float* updates) {
  for (int t = 0; t < kTensors; ++t) {
    const TensorPlace place = network.tensors[t];
    if (place.holder != Holder::shared) continue;
    const float *trained = model[t], *start = shared + place.offset;
    float* update = updates + place.offset;
    for_each_element(model.tensors[t],
                     [&](std::size_t flat, std::ptrdiff_t at) { update[flat] = trained[at] - start[flat]; });
  }
}

void pack_local(const Network& network, const Model& model, float* local) {
  for (int t = 0; t < kTensors; ++t) {
    const TensorPlace place = network.tensors[t];
    if (place.holder != Holder::local) continue;
    const float* source = model[t];
    float* target = local + place.offset;
    for_each_element(model.tensors[t], [&](std::size_t flat, std::ptrdiff_t at) { target[flat] = source[at]; });
  }
}

}  // namespace optigrad
