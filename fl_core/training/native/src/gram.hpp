// Inner products of float rows relative to one of them, in double.
#pragma once

#include <cstddef>
#include <cstdint>

namespace optigrad {

// Columns that are widened to double at a time: two tiles of rows of them fit the first-level cache.
constexpr int kGramChunk = 512;

// A tile of products stays in registers while the columns go by.
template <class Isa>
struct GramTile {
  static constexpr int lanes = Isa::width / 2;  // doubles in a vector
  static constexpr int side = Isa::accumulators >= 16 ? 4 : 3;
  typedef double Doubles __attribute__((vector_size(lanes * sizeof(double))));
  typedef float Floats __attribute__((vector_size(lanes * sizeof(float))));

  static std::int64_t padded(std::int64_t rows) { return (rows + side - 1) / side * side; }
};

// Zeroed memory that `gram` needs.
template <class Isa>
std::size_t gram_bytes(std::int64_t rows) {
  return std::size_t(GramTile<Isa>::padded(rows)) * kGramChunk * sizeof(double);
}

// Writes one row's columns minus the centre's, and zeros up to the end of the chunk.
template <class Isa>
void widen(const float* row, const float* centre, int count, double* to) {
  using Tile = GramTile<Isa>;
  int k = 0;
  for (; k + Tile::lanes <= count; k += Tile::lanes) {
    typename Tile::Floats value, middle;
    __builtin_memcpy(&value, row + k, sizeof value);
    __builtin_memcpy(&middle, centre + k, sizeof middle);
    const typename Tile::Doubles difference = __builtin_convertvector(value, typename Tile::Doubles) -
                                              __builtin_convertvector(middle, typename Tile::Doubles);
    __builtin_memcpy(to + k, &difference, sizeof difference);
  }
  for (; k < count; ++k) to[k] = double(row[k]) - double(centre[k]);
  for (; k < kGramChunk; ++k) to[k] = 0;
}

// One vector of doubles. By value: GCC keeps an array that memcpy writes to on the stack, and tiles with it.
template <class Isa>
typename GramTile<Isa>::Doubles doubles_at(const double* from) {
  typename GramTile<Isa>::Doubles value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

// Adds the products of `side` rows with `side` others to the matrix, as far as there are rows. Only the first `count`
// columns are not zero.
template <class Isa>
void add_tile(const double* left, const double* right, int count, std::int64_t rows_left, std::int64_t rows_right,
              std::int64_t stride, double* products) {
  using Tile = GramTile<Isa>;
  typename Tile::Doubles sums[Tile::side][Tile::side] = {};
  for (int k = 0; k < count; k += Tile::lanes) {
    typename Tile::Doubles a[Tile::side], b[Tile::side];
#pragma GCC unroll 4
    for (int i = 0; i < Tile::side; ++i) {
      a[i] = doubles_at<Isa>(left + i * kGramChunk + k);
      b[i] = doubles_at<Isa>(right + i * kGramChunk + k);
    }
#pragma GCC unroll 4
    for (int i = 0; i < Tile::side; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < Tile::side; ++j) sums[i][j] += a[i] * b[j];
  }
  for (std::int64_t i = 0; i < Tile::side && i < rows_left; ++i)
    for (std::int64_t j = 0; j < Tile::side && j < rows_right; ++j) {
      double total = 0;
      for (int lane = 0; lane < Tile::lanes; ++lane) total += sums[i][j][lane];
      products[i * stride + j] += total;
    }
}

// Adds to the lower triangle of products (rows, rows), by tiles, what `columns` columns contribute.
template <class Isa>
void gram(const float* updates, std::int64_t rows, std::int64_t stride, std::int64_t columns, const float* centre,
          void* memory, double* products) {
  using Tile = GramTile<Isa>;
  double* exact = static_cast<double*>(memory);
  for (std::int64_t start = 0; start < columns; start += kGramChunk) {
    const int count = int(columns - start < kGramChunk ? columns - start : kGramChunk);
    for (std::int64_t i = 0; i < rows; ++i)
      widen<Isa>(updates + i * stride + start, centre + start, count, exact + i * kGramChunk);
    for (std::int64_t i = 0; i < rows; i += Tile::side)
      for (std::int64_t j = 0; j <= i; j += Tile::side)
        add_tile<Isa>(exact + i * kGramChunk, exact + j * kGramChunk, count, rows - i, rows - j, rows,
                      products + i * rows + j);
  }
}

}  // namespace optigrad
