// One step of plain SGD, with the gradient of the proximal term in closed form: w -= rate * (g + mu * (w - anchor)).
#pragma once

#include "kernels.hpp"

namespace optigrad {

// T is float or a vector of floats.
template <class Isa, class T>
[[gnu::always_inline]] inline T stepped(T weight, T gradient, T anchor, Sgd sgd) {
  return weight - sgd.rate * (gradient + sgd.mu * (weight - anchor));
}

// anchor: the global model's values, or null for a tensor that stays local and that nothing pulls back.
template <class Isa>
void step(float* weights, const float* gradients, const float* anchor, std::size_t count, Sgd sgd) {
  if (anchor)
    for (std::size_t i = 0; i < count; ++i) weights[i] = stepped<Isa>(weights[i], gradients[i], anchor[i], sgd);
  else
    for (std::size_t i = 0; i < count; ++i) weights[i] -= sgd.rate * gradients[i];
}

}  // namespace optigrad
