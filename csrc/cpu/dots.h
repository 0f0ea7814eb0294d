// Matrix product of bfloat16 pairs with float sums, for processors that have an instruction for it (AVX512-BF16): twice
// the multiply-adds of float. The pairs lie as one 32-bit word each, the lower half first, both along the depth.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <type_traits>

#include "../tensor.h"
#include "gemm.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define DEOCC_HAS_DOTS 1
#include <immintrin.h>
#else
#define DEOCC_HAS_DOTS 0
#endif

namespace deocc {

// Whether multiply_pairs may be called. DEOCC_VECTOR=narrow|avx2|avx512 forbids it.
inline bool has_dots() {
#if DEOCC_HAS_DOTS
  static const bool has = vector_width() == Width::avx512 && __builtin_cpu_supports("avx512bf16") &&
                          (!std::getenv("DEOCC_VECTOR") || std::string_view(std::getenv("DEOCC_VECTOR")) != "avx512");
  return has;
#else
  return false;
#endif
}

#if DEOCC_HAS_DOTS
#define DEOCC_DOTS __attribute__((target("arch=x86-64-v4,avx512bf16")))

// See multiply_tile.
template <int rows, int vectors>
DEOCC_DOTS void multiply_pairs_tile(const Left<uint32_t>& a, const uint32_t* __restrict b, int64_t b_row,
                                    float* __restrict c, int64_t c_row, int64_t depth, bool accumulate) {
  __m512 sum[rows][vectors];
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      sum[i][v] = accumulate ? _mm512_loadu_ps(c + i * c_row + v * 16) : _mm512_setzero_ps();
    }
  }
  const uint32_t* block = a.data;
  while (depth > 0) {
    const int64_t steps = depth < a.block ? depth : a.block;
    const uint32_t* from = block;
    for (int64_t k = 0; k < steps; ++k, from += a.column, b += b_row) {
      __m512bh right[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) right[v] = (__m512bh)_mm512_loadu_si512(b + v * 16);
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) {
        const __m512bh left = (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(from[i * a.row]));
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], left, right[v]);
      }
    }
    depth -= steps;
    block += a.jump;
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) _mm512_storeu_ps(c + i * c_row + v * 16, sum[i][v]);
  }
}

template <int vectors>
DEOCC_DOTS void multiply_pairs_columns(Left<uint32_t> a, const uint32_t* b, int64_t b_row, float* c, int64_t c_row,
                                       int64_t rows, int64_t depth, bool accumulate) {
  int64_t done = 0;
  for (; done + 8 <= rows; done += 8, a.data += 8 * a.row, c += 8 * c_row) {
    multiply_pairs_tile<8, vectors>(a, b, b_row, c, c_row, depth, accumulate);
  }
  for (; done + 4 <= rows; done += 4, a.data += 4 * a.row, c += 4 * c_row) {
    multiply_pairs_tile<4, vectors>(a, b, b_row, c, c_row, depth, accumulate);
  }
  for (; done + 2 <= rows; done += 2, a.data += 2 * a.row, c += 2 * c_row) {
    multiply_pairs_tile<2, vectors>(a, b, b_row, c, c_row, depth, accumulate);
  }
  if (done < rows) multiply_pairs_tile<1, vectors>(a, b, b_row, c, c_row, depth, accumulate);
}

// c = a b, or c += a b: rows x 2 depth by 2 depth x columns, a multiple of 16.
DEOCC_DOTS inline void multiply_pairs(const Left<uint32_t>& a, const Panels<const uint32_t>& b, const Panels<float>& c,
                                      int64_t rows, int64_t columns, int64_t depth, bool accumulate) {
  for (int64_t n = 0; n < columns; n += kPanel) {
    if (columns - n >= kPanel) {
      multiply_pairs_columns<2>(a, b.at(0, n), b.row, c.at(0, n), c.row, rows, depth, accumulate);
    } else {
      multiply_pairs_columns<1>(a, b.at(0, n), b.row, c.at(0, n), c.row, rows, depth, accumulate);
    }
  }
}

typedef uint32_t Words __attribute__((vector_size(64)));

// The next elements of a row that ends after `left` of them.
DEOCC_DOTS inline __m512 load_floats(const float* from, int64_t left) {
  return left >= 16 ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps((1 << std::max<int64_t>(left, 0)) - 1, from);
}

// Rounded to nearest, in the lower half of each word.
DEOCC_DOTS inline Words rounded(const __m512& floats) {
  typedef uint16_t Halves __attribute__((vector_size(32)));
  return __builtin_convertvector((Halves)_mm512_cvtneps_pbh(floats), Words);
}

DEOCC_DOTS inline void store_words(uint32_t* to, const __m512i& words, int64_t left) {
  _mm512_mask_storeu_epi32(to, left >= 16 ? 0xffff : (1 << left) - 1, words);
}

// Pairs along the columns of (rows, width), rounded to bfloat16: (words of rows, width). What is missing is 0.
DEOCC_DOTS inline void pair_rows(const float* from, int64_t rows, int64_t width, uint32_t* to) {
  for (int64_t r = 0; r < rows; r += 2, from += 2 * width, to += width) {
    for (int64_t x = 0; x < width; x += 16) {
      const __m512 low = load_floats(from + x, width - x);
      const __m512 high = r + 1 < rows ? load_floats(from + width + x, width - x) : _mm512_setzero_ps();
      store_words(to + x, (__m512i)(rounded(low) | rounded(high) << 16), width - x);
    }
  }
}

// Pairs along the rows: (rows, words of width).
DEOCC_DOTS inline void pair_columns(const float* from, int64_t rows, int64_t width, uint32_t* to) {
  for (int64_t r = 0; r < rows; ++r, from += width, to += (width + 1) / 2) {
    for (int64_t x = 0; x < width; x += 32) {
      const __m512 first = load_floats(from + x, width - x), second = load_floats(from + x + 16, width - x - 16);
      store_words(to + x / 2, (__m512i)_mm512_cvtne2ps_pbh(second, first), (width - x + 1) / 2);
    }
  }
}

// From two rows of words along which pairs lie, to one across which they do.
DEOCC_INLINE void pair_across(const uint32_t* __restrict one, const uint32_t* __restrict two, int64_t words,
                              uint32_t* __restrict to) {
  for (int64_t x = 0; x < words; ++x) {
    to[2 * x] = (one[x] & 0xffff) | two[x] << 16;
    to[2 * x + 1] = one[x] >> 16 | (two[x] & 0xffff0000);
  }
}
#endif

// Two ways to multiply, for code that is the same but for this: in T, a word of either side being one element, or in
// pairs of bfloat16.
template <class T>
struct Single {
  using Word = T;
  using Sum = T;
  static constexpr int64_t size = 1;  // elements in a word
  static int64_t words(int64_t elements) { return elements; }

  static void multiply(const Left<T>& a, const Panels<const T>& b, const Panels<T>& c, int64_t rows, int64_t columns,
                       int64_t depth, bool accumulate) {
    deocc::multiply<T>(a, b, c, rows, columns, depth, accumulate);
  }
  // A matrix in words; where it has to be converted, it is written there.
  static const T* pair_rows(const T* from, int64_t, int64_t, T*) { return from; }
  static const T* pair_columns(const T* from, int64_t, int64_t, T*) { return from; }
};

#if DEOCC_HAS_DOTS
struct Paired {
  using Word = uint32_t;
  using Sum = float;
  static constexpr int64_t size = 2;
  static int64_t words(int64_t elements) { return (elements + 1) / 2; }

  static void multiply(const Left<Word>& a, const Panels<const Word>& b, const Panels<float>& c, int64_t rows,
                       int64_t columns, int64_t depth, bool accumulate) {
    multiply_pairs(a, b, c, rows, columns, depth, accumulate);
  }
  static const Word* pair_rows(const float* from, int64_t rows, int64_t width, Word* to) {
    deocc::pair_rows(from, rows, width, to);
    return to;
  }
  static const Word* pair_columns(const float* from, int64_t rows, int64_t width, Word* to) {
    deocc::pair_columns(from, rows, width, to);
    return to;
  }
};
#endif

// Calls function with Paired for elements that were given in bfloat16, where the processor has them, else with Single.
template <class S, class Function>
void by_products(const Function& function) {
#if DEOCC_HAS_DOTS
  if constexpr (std::is_same_v<S, torch::headeronly::BFloat16>) {
    if (has_dots()) return function(Paired());
  }
#endif
  function(Single<typename Compute<S>::type>());
}

}  // namespace deocc
