// Matrix product of bfloat16 pairs with float sums, for processors that have an instruction for it (AVX512-BF16): twice
// the multiply-adds of float. The pairs lie as one 32-bit word each, the lower half first, both along the depth.
#pragma once

#include <cstdint>

#include "gemm.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define DEOCC_HAS_DOTS 1
#include <immintrin.h>
#else
#define DEOCC_HAS_DOTS 0
#endif

namespace deocc {

// Whether multiply_pairs may be called. DEOCC_VECTOR=narrow|avx2 forbids it.
inline bool has_dots() {
#if DEOCC_HAS_DOTS
  static const bool has = vector_width() == Width::avx512 && __builtin_cpu_supports("avx512bf16");
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
  const uint32_t* from = a.data;
  for (int64_t k = 0; k < depth; ++k, from += a.column, b += b_row) {
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
  for (; done + 2 <= rows; done += 2, a.data += 2 * a.row, c += 2 * c_row) {
    multiply_pairs_tile<2, vectors>(a, b, b_row, c, c_row, depth, accumulate);
  }
  if (done < rows) multiply_pairs_tile<1, vectors>(a, b, b_row, c, c_row, depth, accumulate);
}

// c = a b, or c += a b: rows x 2 depth by 2 depth x columns, a multiple of 16. a is not in blocks.
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
#endif

}  // namespace deocc
