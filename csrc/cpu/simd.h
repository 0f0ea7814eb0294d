// Vectors of a width that is chosen when the program runs: one binary works on any processor and is fast on what it
// finds. Unlike clones.h it tells the code how wide they are, which register blocking needs to know:
//
//   by_width<float>([&](auto vector) DEOCC_BODY { scale<decltype(vector)>(data, count, factor); });
//
// calls scale<Vector<float, 64>>, <..., 32> or <..., 16>, compiled for that instruction set. Everything that is called
// in there must be DEOCC_INLINE.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "clones.h"

#define DEOCC_BODY __attribute__((always_inline))

// Vectors never cross a call, so it does not matter how they would.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace deocc {

enum class Width { narrow, avx2, avx512 };

// The widest vectors that this processor computes with, or at most those that DEOCC_VECTOR=narrow|avx2 allows. It is
// read once.
inline Width vector_width() {
  static const Width width = [] {
#if defined(__x86_64__)
    const char* variable = std::getenv("DEOCC_VECTOR");
    const std::string_view most = variable ? variable : "";
    if (most != "narrow" && most != "avx2" && __builtin_cpu_supports("x86-64-v4")) return Width::avx512;
    if (most != "narrow" && __builtin_cpu_supports("x86-64-v3")) return Width::avx2;
#endif
    return Width::narrow;
  }();
  return width;
}

template <class T, int bytes>
struct Vector {
  using Element = T;
  static constexpr int lanes = bytes / sizeof(T);
  static constexpr int registers = bytes == 64 ? 32 : 16;
  typedef T type __attribute__((vector_size(bytes)));

  // Any address will do, and the type breaks no aliasing rule.
  static DEOCC_INLINE type load(const T* from) {
    type value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
  }
  static DEOCC_INLINE void store(T* to, const type& value) { __builtin_memcpy(to, &value, sizeof value); }
};

template <class T, class Body>
#if defined(__x86_64__)
__attribute__((target("arch=x86-64-v4")))
#endif
void with_avx512(const Body& body) {
  body(Vector<T, 64>());
}

template <class T, class Body>
#if defined(__x86_64__)
__attribute__((target("arch=x86-64-v3")))
#endif
void with_avx2(const Body& body) {
  body(Vector<T, 32>());
}

template <class T, class Body>
void by_width(const Body& body) {
  switch (vector_width()) {
    case Width::avx512:
      return with_avx512<T>(body);
    case Width::avx2:
      return with_avx2<T>(body);
    case Width::narrow:
      return body(Vector<T, 16>());
  }
}

}  // namespace deocc
