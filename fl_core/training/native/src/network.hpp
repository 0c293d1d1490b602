// What the engine is told about a network, and the sizes that follow from it.
//
// `Network` and `TensorPlace` are the C ABI: `engine.py` mirrors them field by field as ctypes structures.
#pragma once

#include <cstddef>
#include <cstdint>

namespace optigrad {

constexpr int kKernel = 3;             // convolutions are 3x3 with padding 1
constexpr int kTaps = kKernel * kKernel;
constexpr int kPatch = 4;              // Winograd's convolution takes patches of 4x4 pixels, and kernels as 4x4 points
constexpr int kPoints = kPatch * kPatch;
constexpr int kBlocks = 2;             // convolution - BatchNorm - ReLU - pooling, twice
constexpr int kRowAlignment = 16;      // rows of dense layers are padded to whole vectors of the widest kind

enum class Holder : std::int32_t { absent = 0, shared = 1, local = 2 };

// Where a tensor of the network lies in the flat vectors of a model.
struct TensorPlace {
  std::int64_t offset;
  Holder holder;
  std::int32_t padding;
};

// Order of the tensors in `Network::tensors`, and of those in a `Model`.
enum BlockTensor { kWeight, kBias, kGamma, kBeta, kRunningMean, kRunningVariance, kBlockTensors };
enum DenseTensor { kHiddenWeight = kBlocks * kBlockTensors, kHiddenBias, kOutputWeight, kOutputBias, kTensors };

struct Network {
  std::int64_t image_channels, height, width;
  std::int64_t channels[kBlocks];
  std::int64_t hidden;  // 0: one dense layer only
  std::int64_t classes;
  double epsilon[kBlocks], momentum[kBlocks];
  std::int64_t num_shared, num_local;
  TensorPlace tensors[kTensors];
};

// Channels are stored in 8, 16, 32 or 64 lanes, of which the last may be padding: few kernels serve every network.
constexpr int lanes_for(std::int64_t channels) {
  return channels <= 8 ? 8 : channels <= 16 ? 16 : channels <= 32 ? 32 : 64;
}

constexpr std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Floats from one of Winograd's points to the next, of `count` tiles or input channels with 16 lanes or more: an odd
// number of cache lines, or the sixteen that are read and written together would meet in the same sets of a cache.
constexpr std::size_t points_apart(int count, int lanes) { return (std::size_t(count) * lanes / 16 | 1) * 16; }

// One block. Its input map has a border of one pixel of zeros, so the convolution needs no edge cases.
struct BlockShape {
  int in_channels, in_stride;  // real channels, and floats from one pixel to the next
  int channels, lanes;
  int height, width, pooled_height, pooled_width;

  int padded_width() const { return width + 2; }
  std::size_t input_floats() const { return std::size_t(height + 2) * padded_width() * in_stride; }
  std::size_t map_floats() const { return std::size_t(height) * width * lanes; }
  std::size_t padded_map_floats() const { return std::size_t(height + 2) * padded_width() * lanes; }
  std::size_t pooled_floats() const { return std::size_t(pooled_height) * pooled_width * lanes; }
  std::size_t weights() const { return std::size_t(kTaps) * in_stride * lanes; }
  std::size_t points() const { return kPoints * points_apart(in_stride, lanes); }
};

// A dense layer of (outputs, pitch) weights; the columns after `inputs` are zero.
struct DenseShape {
  int inputs, outputs;
  std::size_t pitch;
};

struct Shape {
  BlockShape blocks[kBlocks];
  bool has_hidden;
  DenseShape hidden, output;

  explicit Shape(const Network& network) {
    int in_channels = int(network.image_channels), in_stride = in_channels;
    int height = int(network.height), width = int(network.width);
    for (int i = 0; i < kBlocks; ++i) {
      const int channels = int(network.channels[i]);
      blocks[i] = {in_channels, in_stride, channels, lanes_for(channels), height, width, height / 2, width / 2};
      in_channels = channels, in_stride = blocks[i].lanes, height /= 2, width /= 2;
    }
    has_hidden = network.hidden > 0;
    int features = height * width * in_stride;
    if (has_hidden) {
      hidden = dense(features, int(network.hidden));
      features = hidden.outputs;
    } else {
      hidden = dense(0, 0);
    }
    output = dense(features, int(network.classes));
  }

  std::size_t feature_pitch() const { return has_hidden ? hidden.pitch : output.pitch; }

 private:
  static DenseShape dense(int inputs, int outputs) {
    return {inputs, outputs, round_up(std::size_t(inputs), kRowAlignment)};
  }
};

}  // namespace optigrad
