// Local training of one client, from the first batch to the last.
//
// Everything that a step touches lies in one arena of one thread. The forward pass needs whole-batch statistics, so it
// goes layer by layer; the backward pass goes by groups of images small enough that the slopes of a map, the largest
// thing there is, are made and used up inside the first-level cache (the second, by Winograd's convolution) and never
// exist for the whole batch.
#pragma once

#include "cross_entropy.hpp"
#include "kernels.hpp"
#include "layers.hpp"

namespace optigrad {

constexpr std::size_t kGroupBytes = 32 * 1024;  // slopes of a group of images: most of a first-level cache

template <class Isa>
class Client {
 public:
  // With an arena that has no memory this only counts.
  Client(const Network& network, const Shape& shape, int batch, Arena& arena)
      : network_(network),
        shape_(shape),
        batch_(batch),
        model_(shape, arena),
        blocks_{{network, shape, model_, 0, arena}, {network, shape, model_, 1, arena}},
        way_back_(input_gradient(shape.blocks[1])),
        head_(shape, model_, batch, arena),
        logit_slopes_(arena.floats(batch * head_.logit_pitch)),
        hidden_slopes_(arena.floats(shape.has_hidden ? batch * shape.output.pitch : 0)),
        feature_slopes_(arena.floats(batch * shape.feature_pitch())) {
    std::size_t weights = 0, points = 0;
    for (int i = 0; i < kBlocks; ++i) {
      const BlockShape& block = shape.blocks[i];
      inputs_[i] = arena.floats(batch * block.input_floats());
      maps_[i] = arena.floats(batch * block.map_floats());
      pooled_[i] = {arena.floats(batch * block.pooled_floats()), arena.bytes(batch * block.pooled_floats())};
      groups_[i] = group_size(block, batch);
      slopes_[i] = arena.floats(groups_[i] * block.padded_map_floats());
      weights = block.weights() > weights ? block.weights() : weights;
      if (blocks_[i].convolution.transforms()) points = block.points() > points ? block.points() : points;
    }
    gradient_ = arena.floats(weights);
    flipped_ = arena.floats(weights);
    gradient_points_ = arena.floats(points);
    flipped_points_ = arena.floats(points);
    no_bias_ = arena.floats(shape.blocks[1].in_stride);
  }

  void train(const Model& anchor, const float* shared, const float* local, const ClientData& data, Sgd sgd) {
    unpack(network_, shared, local, model_);
    for (const Block<Isa>& block : blocks_) block.mark_channels();
    const std::size_t image = std::size_t(shape_.blocks[0].in_channels) * shape_.blocks[0].height * shape_.blocks[0].width;
    for (int step = 0; step < data.steps; ++step) {
      const std::size_t first = std::size_t(step) * batch_;
      for (int b = 0; b < batch_; ++b) load_image<Isa>(data.images + (first + b) * image, shape_.blocks[0], input(0, b));
      forward();
      cross_entropy_gradient<Isa>(head_.logits, data.labels + first, batch_, shape_.output.outputs, head_.logit_pitch,
                                  logit_slopes_);
      step_head(anchor, sgd);
      step_block(1, anchor, sgd);
      step_block(0, anchor, sgd);
    }
  }

  const Model& model() const { return model_; }

 private:
  // Winograd's exactly where the block's own convolution is, and then it needs as much memory: both are the same if what
  // comes in and what goes out change places.
  static ConvolutionKernels<Isa> input_gradient(const BlockShape& block) {
    return find_convolution<Isa>(block.lanes, block.in_stride, block.height, block.width);
  }

  static int group_size(const BlockShape& block, int batch) {
    const std::size_t fitting = kGroupBytes / (block.padded_map_floats() * sizeof(float));
    return fitting < 1 ? 1 : fitting < std::size_t(batch) ? int(fitting) : batch;
  }

  float* input(int index, int image) const { return inputs_[index] + image * shape_.blocks[index].input_floats(); }
  float* map(int index, int image) const { return maps_[index] + image * shape_.blocks[index].map_floats(); }
  Pooled pooled(int index, int image) const {
    const std::size_t at = image * shape_.blocks[index].pooled_floats();
    return {pooled_[index].peaks + at, pooled_[index].winners + at};
  }

  // What a block hands on: the inside of the next block's padded input, or a row of the head's features.
  struct Handover {
    float* first;
    int pitch;
  };
  Handover handover(int index, int image, float* features) const {
    if (index + 1 == kBlocks)
      return {features + image * shape_.feature_pitch(), shape_.blocks[index].pooled_width};
    const BlockShape& next = shape_.blocks[index + 1];
    return {input(index + 1, image) + Block<Isa>::inside(next.padded_width(), next.in_stride), next.padded_width()};
  }

  void forward() {
    for (int i = 0; i < kBlocks; ++i) {
      const Block<Isa>& block = blocks_[i];
      block.prepare();
      for (int b = 0; b < batch_; ++b) {
        block.convolve(input(i, b), 0, block.shape.height, map(i, b));
        if (b == 0) begin_statistics<Isa>(map(i, 0), block.shape.lanes, block.norm);
        block.batchnorm.accumulate(map(i, b), block.shape.height * block.shape.width, block.norm);
      }
      block.finish_statistics(batch_, block.momentum);
      for (int b = 0; b < batch_; ++b) {
        const Handover to = handover(i, b, head_.features);
        block.batchnorm.pool(map(i, b), block.shape, block.norm, to.first, to.pitch, pooled(i, b));
      }
    }
    head_.forward(batch_);
  }

  // Every gradient is taken at the weights of the forward pass: a layer's input gradient comes before its step.
  void step_head(const Model& anchor, Sgd sgd) {
    const DenseShape& output = shape_.output;
    float* output_slopes = shape_.has_hidden ? hidden_slopes_ : feature_slopes_;
    Dense<Isa>::input_gradient(logit_slopes_, head_.logit_pitch, model_[kOutputWeight], output, batch_, output_slopes);
    Dense<Isa>::update(shape_.has_hidden ? head_.hidden : head_.features, logit_slopes_, head_.logit_pitch, output,
                       batch_, model_[kOutputWeight], present(kOutputBias), anchor[kOutputWeight],
                       anchor[kOutputBias], sgd);
    if (!shape_.has_hidden) return;
    relu_gradient<Isa>(head_.hidden, batch_ * output.pitch, hidden_slopes_);
    Dense<Isa>::input_gradient(hidden_slopes_, output.pitch, model_[kHiddenWeight], shape_.hidden, batch_,
                               feature_slopes_);
    Dense<Isa>::update(head_.features, hidden_slopes_, output.pitch, shape_.hidden, batch_, model_[kHiddenWeight],
                       present(kHiddenBias), anchor[kHiddenWeight], anchor[kHiddenBias], sgd);
  }

  void step_block(int index, const Model& anchor, Sgd sgd) {
    const Block<Isa>& block = blocks_[index];
    const BlockShape& shape = block.shape;
    const Normalisation& norm = block.norm;
    for (int lane = 0; lane < shape.lanes; ++lane) norm.gamma_gradient[lane] = norm.beta_gradient[lane] = 0;
    for (int b = 0; b < batch_; ++b) {
      const Handover from = handover(index, b, feature_slopes_);
      block.batchnorm.gradient_sums(from.first, from.pitch, shape, norm, pooled(index, b));
    }
    spread_gradient<Isa>(shape.lanes, double(batch_) * shape.height * shape.width, norm);
    const bool transforms = block.convolution.transforms();
    float* gradient = transforms ? gradient_points_ : gradient_;
    std::memset(gradient, 0, (transforms ? shape.points() : shape.weights()) * sizeof(float));
    if (index > 0) flip_weights<Isa>(block.weight, shape, flipped_);
    if (index > 0 && way_back_.transforms()) way_back_.transform(flipped_, flipped_points_);
    for (int first = 0; first < batch_; first += groups_[index])
      backward_group(index, first, first + groups_[index] < batch_ ? groups_[index] : batch_ - first, gradient);
    if (transforms) block.convolution.collect(gradient_points_, gradient_);
    step_tensor(index, kWeight, gradient_, shape.weights(), anchor, sgd);
    step_tensor(index, kGamma, norm.gamma_gradient, shape.lanes, anchor, sgd);
    step_tensor(index, kBeta, norm.beta_gradient, shape.lanes, anchor, sgd);
    step_bias(index, anchor, sgd);
  }

  // Slopes of the maps of a few images, their part of the weight gradient, and the slopes of the block's input. The
  // latter overwrite the input, which is not needed any more once the weight gradient has it.
  void backward_group(int index, int first, int images, float* gradient) {
    const Block<Isa>& block = blocks_[index];
    const BlockShape& shape = block.shape;
    const int pitch = shape.padded_width();
    const std::ptrdiff_t inside = Block<Isa>::inside(pitch, shape.lanes);
    for (int i = 0; i < images; ++i) {
      const Handover from = handover(index, first + i, feature_slopes_);
      block.batchnorm.backward(map(index, first + i), from.first, from.pitch, shape, block.norm,
                               pooled(index, first + i), slopes(index, i) + inside, pitch);
    }
    const Maps in = {input(index, first), pitch, shape.input_floats()};
    const Maps out = {slopes(index, 0) + inside, pitch, shape.padded_map_floats()};
    block.convolution.weight_gradient(in, out, images, shape.height, shape.width, gradient, block.scratch);
    if (index == 0) return;
    for (int i = 0; i < images; ++i)
      way_back_.forward(slopes(index, i), pitch, shape.channels, way_back_.transforms() ? flipped_points_ : flipped_,
                        no_bias_, input(index, first + i) + Block<Isa>::inside(pitch, shape.in_stride), pitch,
                        shape.height, shape.width, block.scratch);
  }

  void step_tensor(int index, BlockTensor tensor, const float* gradient, std::size_t count, const Model& anchor,
                   Sgd sgd) {
    const bool pulled = network_.tensors[index * kBlockTensors + tensor].holder == Holder::shared;
    step<Isa>(model_.block(index, tensor), gradient, pulled ? anchor.block(index, tensor) : nullptr, count, sgd);
  }

  // A constant added before BatchNorm cancels: its gradient is zero but for rounding, unless something is not finite.
  void step_bias(int index, const Model& anchor, Sgd sgd) {
    if (!present(index * kBlockTensors + kBias)) return;
    const Normalisation& norm = blocks_[index].norm;
    const int lanes = blocks_[index].shape.lanes;
    for (int lane = 0; lane < lanes; ++lane) gradient_[lane] = 0 * (norm.scale[lane] * norm.gamma_gradient[lane]);
    step_tensor(index, kBias, gradient_, lanes, anchor, sgd);
  }

  float* present(int tensor) const {
    return network_.tensors[tensor].holder == Holder::absent ? nullptr : model_[tensor];
  }
  float* slopes(int index, int image) const {
    return slopes_[index] + image * shape_.blocks[index].padded_map_floats();
  }

  const Network& network_;
  const Shape& shape_;
  const int batch_;
  Model model_;
  Block<Isa> blocks_[kBlocks];
  const ConvolutionKernels<Isa> way_back_;  // of the second block's slopes; the first one's input has none
  Head<Isa> head_;
  float *logit_slopes_, *hidden_slopes_, *feature_slopes_;
  float *inputs_[kBlocks], *maps_[kBlocks];
  Pooled pooled_[kBlocks];
  int groups_[kBlocks];
  float* slopes_[kBlocks];  // padded: the input gradient is a convolution of them
  float *gradient_, *flipped_, *no_bias_;
  float *gradient_points_, *flipped_points_;  // for Winograd's convolution
};

template <class Isa>
std::size_t training_bytes(const Network& network, int batch) {
  const Shape shape(network);
  Arena arena;
  Client<Isa>(network, shape, batch, arena);
  return arena.used();
}

template <class Isa>
void train_client(const Network& network, const Model& anchor, const float* shared, const float* local,
                  const ClientData& data, Sgd sgd, void* memory, float* updates, float* new_local) {
  const Shape shape(network);
  Arena arena(memory);
  Client<Isa> client(network, shape, data.batch, arena);
  client.train(anchor, shared, local, data, sgd);
  pack_updates(network, client.model(), shared, updates);
  pack_local(network, client.model(), new_local);
}

}  // namespace optigrad
