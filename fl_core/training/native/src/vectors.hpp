// Vectors of floats by the compiler's vector extension, so that one source serves every instruction set.
//
// Everything here and in the other kernel headers is a template over the instruction set `Isa`, a type of its own in
// each translation unit: the linker must never merge a function compiled for AVX-512 with its portable namesake.
#pragma once

#include <cstdint>

namespace optigrad {

template <int Width>
struct VectorTypes {
  typedef float Floats __attribute__((vector_size(Width * sizeof(float))));
  typedef std::int32_t Ints __attribute__((vector_size(Width * sizeof(std::int32_t))));
  typedef std::int8_t Bytes __attribute__((vector_size(Width)));
  typedef double Doubles __attribute__((vector_size(Width * sizeof(double))));
  typedef std::int64_t Longs __attribute__((vector_size(Width * sizeof(std::int64_t))));
};

template <class Isa, int Width>
struct Simd {
  using Floats = typename VectorTypes<Width>::Floats;
  using Ints = typename VectorTypes<Width>::Ints;
  using Bytes = typename VectorTypes<Width>::Bytes;

  // memcpy is the one way to load and store without an alignment or aliasing promise; it compiles to one move.
  [[gnu::always_inline]] static Floats load(const float* from) {
    Floats value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
  }
  [[gnu::always_inline]] static Ints load(const std::int32_t* from) {
    Ints value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
  }
  [[gnu::always_inline]] static Ints load_widened(const std::int8_t* from) {
    Bytes value;
    __builtin_memcpy(&value, from, sizeof value);
    return __builtin_convertvector(value, Ints);
  }
  [[gnu::always_inline]] static void store(float* to, Floats value) { __builtin_memcpy(to, &value, sizeof value); }
  [[gnu::always_inline]] static void store_narrowed(std::int8_t* to, Ints value) {
    const Bytes bytes = __builtin_convertvector(value, Bytes);
    __builtin_memcpy(to, &bytes, sizeof bytes);
  }
  [[gnu::always_inline]] static Floats keep(Floats value, Ints mask) { return (Floats)((Ints)value & mask); }
  [[gnu::always_inline]] static float sum(Floats value) {
    for (int half = Width / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) value[i] += value[i + half];
    return value[0];
  }
};

// The vector in which `Lanes` channels are held: as wide as the machine's, or narrower where they are fewer.
template <class Isa, int Lanes>
constexpr int kWidthFor = Lanes < Isa::width ? Lanes : Isa::width;

}  // namespace optigrad
