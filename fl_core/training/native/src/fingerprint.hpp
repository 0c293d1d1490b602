// What the fingerprint's kernels and their callers share; laid out as ctypes structures in fingerprint/native.py.
#pragma once

#include <cstdint>

namespace optigrad {

constexpr int kSketch = 256;  // buckets of the signed fold, SKETCH in geometry.py

struct RowSums {
  double energy = 0, product = 0;  // Σ x², Σ x·reference
  std::int64_t agreeing = 0;       // coordinates whose sign is the reference's and not zero
};

// One dense layer: weight (outputs, inputs), bias (outputs,).
struct DenseLayer {
  const float* weight;
  const float* bias;
  std::int64_t inputs, outputs, relu;
};

// What each part of the quadratic game weighs in a Shapley value; see _QuadraticWeights in shapley.py.
struct QuadraticWeights {
  double slope, slopes, own, owns;
};

struct Autoencoder {
  const DenseLayer* layers;
  std::int64_t num_layers, widest;  // the widest output
  float gain;                       // what a sketch is multiplied by first
};

}  // namespace optigrad
