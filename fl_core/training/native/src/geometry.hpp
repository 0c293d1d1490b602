// Sums over the coordinates of updates, in double: what the geometric features and the sketch of a fingerprint are.
//
// Columns go by in chunks that stay in the first-level cache. Each chunk is summed by itself and then added to the
// total, which keeps the error of sums over millions of terms at a few last digits.
#pragma once

#include <cstdint>
#include <cstring>

#include "fingerprint.hpp"
#include "vectors.hpp"

namespace optigrad {

// A vector of doubles, loaded from as many floats.
template <class Isa>
struct Wide {
  static constexpr int width = Isa::width / 2;
  using Floats = typename VectorTypes<width>::Floats;
  using Doubles = typename VectorTypes<width>::Doubles;
  using Longs = typename VectorTypes<width>::Longs;

  [[gnu::always_inline]] static Doubles load(const float* from) {
    Floats value;
    __builtin_memcpy(&value, from, sizeof value);
    return __builtin_convertvector(value, Doubles);
  }
  [[gnu::always_inline]] static Doubles load(const double* from) {
    Doubles value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
  }
  [[gnu::always_inline]] static void store(double* to, Doubles value) { __builtin_memcpy(to, &value, sizeof value); }
  [[gnu::always_inline]] static double sum(Doubles value) {
    double total = 0;
    for (int i = 0; i < width; ++i) total += value[i];
    return total;
  }
  [[gnu::always_inline]] static std::int64_t sum(Longs value) {
    std::int64_t total = 0;
    for (int i = 0; i < width; ++i) total += value[i];
    return total;
  }
};

// Sum of the squares of a row, chunk by chunk.
template <class Isa>
double energy_of(const float* row, std::int64_t count) {
  using V = Wide<Isa>;
  constexpr std::int64_t step = 4 * V::width;
  double total = 0;
  std::int64_t k = 0;
  while (k + step <= count) {
    typename V::Doubles energy[4] = {};
    const std::int64_t end = k + 8 * kSketch < count - step ? k + 8 * kSketch : count - step;
    for (; k <= end; k += step)
      for (int i = 0; i < 4; ++i) {
        const typename V::Doubles x = V::load(row + k + i * V::width);
        energy[i] += x * x;
      }
    total += V::sum((energy[0] + energy[1]) + (energy[2] + energy[3]));
  }
  for (; k < count; ++k) total += double(row[k]) * row[k];
  return total;
}

// Adds a chunk of one row to its sums. `count` columns from one that is a multiple of kSketch.
template <class Isa>
void sum_columns(const float* row, const float* reference, const float* signs, std::int64_t count, RowSums& sums,
                 double* folded) {
  using V = Wide<Isa>;
  typename V::Doubles energy[2] = {}, product[2] = {};
  typename V::Longs agreeing = {};
  double rest_energy = 0, rest_product = 0;
  for (std::int64_t first = 0; first < count; first += kSketch) {
    const int columns = count - first < kSketch ? int(count - first) : kSketch;
    int k = 0;
    for (; k + 2 * V::width <= columns; k += 2 * V::width)
      for (int half = 0; half < 2; ++half) {
        const int at = k + half * V::width;
        const typename V::Doubles x = V::load(row + first + at);
        const typename V::Doubles with_reference = x * V::load(reference + first + at);
        energy[half] += x * x;
        product[half] += with_reference;
        // The product of two floats neither overflows nor vanishes in double, so its sign tells whether theirs agree.
        agreeing -= (typename V::Longs)(with_reference > (typename V::Doubles){});
        V::store(folded + at, V::load(folded + at) + x * V::load(signs + first + at));
      }
    for (; k < columns; ++k) {
      const double x = row[first + k], with_reference = x * reference[first + k];
      rest_energy += x * x;
      rest_product += with_reference;
      sums.agreeing += with_reference > 0;
      folded[k] += x * signs[first + k];
    }
  }
  sums.energy += V::sum(energy[0] + energy[1]) + rest_energy;
  sums.product += V::sum(product[0] + product[1]) + rest_product;
  sums.agreeing += V::sum(agreeing);
}

// Adds each row's product with the weighted sum of all rows, over `columns` of them: with_all (rows,). `sum` holds the
// weighted sum.
template <class Isa>
void multiply_with_all(const float* updates, std::int64_t rows, std::int64_t pitch, std::int64_t columns,
                       const double* weights, double* sum, double* with_all) {
  using V = Wide<Isa>;
  std::memset(sum, 0, std::size_t(columns) * sizeof(double));
  for (std::int64_t i = 0; i < rows; ++i) {
    const float* row = updates + i * pitch;
    const double weight = weights[i];
    std::int64_t k = 0;
    for (; k + V::width <= columns; k += V::width) V::store(sum + k, V::load(sum + k) + weight * V::load(row + k));
    for (; k < columns; ++k) sum[k] += weight * row[k];
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    const float* row = updates + i * pitch;
    typename V::Doubles total[2] = {};
    double rest = 0;
    std::int64_t k = 0;
    for (; k + 2 * V::width <= columns; k += 2 * V::width)
      for (int half = 0; half < 2; ++half)
        total[half] += V::load(row + k + half * V::width) * V::load(sum + k + half * V::width);
    for (; k < columns; ++k) rest += row[k] * sum[k];
    with_all[i] += V::sum(total[0] + total[1]) + rest;
  }
}

}  // namespace optigrad
