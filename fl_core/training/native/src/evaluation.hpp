// Many images through one model: logits with running statistics, and the statistics themselves anew.
//
// Without a way back nothing need be kept, so direct convolution and pooling go two rows at a time: a row of windows is
// pooled from two rows of the map that are still in the first-level cache, and no such map ever exists as a whole.
#pragma once

#include "kernels.hpp"
#include "layers.hpp"

namespace optigrad {

constexpr int kEvaluationBatch = 16;  // images whose features the head takes at once

template <class Isa>
class Evaluator {
 public:
  Evaluator(const Network& network, const Shape& shape, Arena& arena)
      : network_(network),
        shape_(shape),
        model_(shape, arena),
        blocks_{{network, shape, model_, 0, arena}, {network, shape, model_, 1, arena}},
        head_(shape, model_, kEvaluationBatch, arena) {
    std::size_t rows = 0;
    for (int i = 0; i < kBlocks; ++i) {
      const BlockShape& block = shape.blocks[i];
      inputs_[i] = arena.floats(block.input_floats());
      const std::size_t floats = std::size_t(2) * block.width * block.lanes;
      rows = floats > rows ? floats : rows;
    }
    const BlockShape& last = shape.blocks[kBlocks - 1];
    map_ = arena.floats(last.map_floats() > shape.blocks[0].map_floats() ? last.map_floats()
                                                                        : shape.blocks[0].map_floats());
    rows_ = arena.floats(rows);
  }

  void load(const float* shared, const float* local) {
    unpack(network_, shared, local, model_);
    for (const Block<Isa>& block : blocks_) block.mark_channels(), block.prepare();
  }

  void logits(const float* images, std::int64_t count, float* logits) {
    for (const Block<Isa>& block : blocks_)
      use_running_statistics<Isa>(block.shape.lanes, block.epsilon, block.gamma, block.beta, block.running_mean,
                                  block.running_variance, block.norm);
    for (std::int64_t first = 0; first < count; first += kEvaluationBatch) {
      const int batch = count - first < kEvaluationBatch ? int(count - first) : kEvaluationBatch;
      for (int b = 0; b < batch; ++b) {
        load_image<Isa>(images + (first + b) * image_floats(), shape_.blocks[0], inputs_[0]);
        pass_to_next();
        pass(1, head_.features + b * shape_.feature_pitch(), shape_.blocks[1].pooled_width);
      }
      head_.forward(batch);
      for (int b = 0; b < batch; ++b)
        std::memcpy(logits + (first + b) * shape_.output.outputs, head_.logits + b * head_.logit_pitch,
                    shape_.output.outputs * sizeof(float));
    }
  }

  // Two sweeps over the images, one a block: the first block is computed again rather than kept for all of them.
  void reestimate(const float* images, std::int64_t count) {
    for (int i = 0; i < kBlocks; ++i) {
      const Block<Isa>& block = blocks_[i];
      for (std::int64_t image = 0; image < count; ++image) {
        load_image<Isa>(images + image * image_floats(), shape_.blocks[0], inputs_[0]);
        if (i > 0) pass_to_next();
        block.convolve(inputs_[i], 0, block.shape.height, map_);
        if (image == 0) begin_statistics<Isa>(map_, block.shape.lanes, block.norm);
        block.batchnorm.accumulate(map_, block.shape.height * block.shape.width, block.norm);
      }
      block.finish_statistics(double(count), 1);
    }
  }

  const Model& model() const { return model_; }

 private:
  std::size_t image_floats() const {
    return std::size_t(shape_.blocks[0].in_channels) * shape_.blocks[0].height * shape_.blocks[0].width;
  }

  void pass_to_next() {
    const BlockShape& next = shape_.blocks[1];
    pass(0, inputs_[1] + Block<Isa>::inside(next.padded_width(), next.in_stride), next.padded_width());
  }

  // One image through one block, from its padded input to what is pooled.
  void pass(int index, float* out, int out_pitch) {
    const Block<Isa>& block = blocks_[index];
    // Winograd's convolution wants many tiles at once, the direct one is content with two rows.
    const bool whole = block.convolution.transforms();
    if (whole) block.convolve(inputs_[index], 0, block.shape.height, map_);
    for (int row = 0; row < block.shape.pooled_height; ++row) {
      if (!whole) block.convolve(inputs_[index], 2 * row, 2, rows_);
      const float* pair = whole ? map_ + std::ptrdiff_t(2) * row * block.shape.width * block.shape.lanes : rows_;
      block.batchnorm.pool_row(pair, block.shape.width, block.shape.pooled_width, block.norm,
                               out + std::ptrdiff_t(row) * out_pitch * block.shape.lanes);
    }
  }

  const Network& network_;
  const Shape& shape_;
  Model model_;
  Block<Isa> blocks_[kBlocks];
  Head<Isa> head_;
  float* inputs_[kBlocks];
  float *map_, *rows_;
};

template <class Isa>
std::size_t evaluation_bytes(const Network& network) {
  const Shape shape(network);
  Arena arena;
  Evaluator<Isa>(network, shape, arena);
  return arena.used();
}

template <class Isa>
void evaluate_logits(const Network& network, const float* shared, const float* local, const float* images,
                     std::int64_t count, void* memory, float* logits) {
  const Shape shape(network);
  Arena arena(memory);
  Evaluator<Isa> evaluator(network, shape, arena);
  evaluator.load(shared, local);
  evaluator.logits(images, count, logits);
}

template <class Isa>
void reestimate_statistics(const Network& network, const float* shared, const float* local, const float* images,
                           std::int64_t count, void* memory, float* new_local) {
  const Shape shape(network);
  Arena arena(memory);
  Evaluator<Isa> evaluator(network, shape, arena);
  evaluator.load(shared, local);
  evaluator.reestimate(images, count);
  pack_local(network, evaluator.model(), new_local);
}

}  // namespace optigrad
