// The gradient of the mean cross-entropy with respect to the logits: (softmax - one hot) / batch.
#pragma once

#include <cmath>
#include <cstdint>

namespace optigrad {

// logits, slopes: (batch, pitch). Labels are in range; the C ABI has checked them. NaN spreads over its row.
template <class Isa>
void cross_entropy_gradient(const float* logits, const std::int64_t* labels, int batch, int classes,
                            std::size_t pitch, float* slopes) {
  const float share = 1.0f / float(batch);
  for (int b = 0; b < batch; ++b) {
    const float* z = logits + b * pitch;
    float* slope = slopes + b * pitch;
    float highest = z[0];
    for (int c = 1; c < classes; ++c) highest = z[c] > highest ? z[c] : highest;
    float total = 0;
    for (int c = 0; c < classes; ++c) total += slope[c] = std::exp(z[c] - highest);
    const float factor = share / total;
    for (int c = 0; c < classes; ++c) slope[c] *= factor;
    slope[labels[b]] -= share;
  }
}

}  // namespace optigrad
