// Matrix product out of registers, for operands that lie in the cache: what tiled kernels are made of.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.h"

namespace deocc {

constexpr int64_t kPanel = 32;  // columns that lie side by side

// A matrix whose elements (i, k) are read one by one: they may lie anywhere. k counts blocks of `block` columns.
template <class T>
struct Left {
  const T* data;
  int64_t row, column;          // distance between rows; between columns of one block
  int64_t block = int64_t(1) << 62, jump = 0;  // columns in a block; distance between blocks
};

// A matrix in panels of kPanel columns, whose rows are contiguous. The number of columns is a multiple of 16.
template <class T>
struct Panels {
  T* data;
  int64_t row, panel;  // distance between rows, between panels

  T* at(int64_t r, int64_t c) const { return data + r * row + c / kPanel * panel + c % kPanel; }
  Panels from(int64_t r) const { return {data + r * row, row, panel}; }  // without the rows before
};

// The same for a matrix with contiguous rows.
template <class T>
Panels<T> row_major(T* data, int64_t row) {
  return {data, row, kPanel};
}

template <class V, int rows, int vectors, class T>
DEOCC_INLINE void multiply_tile(const Left<T>& a, const T* __restrict b, int64_t b_row, T* __restrict c, int64_t c_row,
                                int64_t depth, bool accumulate) {
  using Vec = typename V::type;
  Vec sum[rows][vectors];
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[i][v] = accumulate ? V::load(c + i * c_row + v * V::lanes) : Vec{};
  }
  const T* block = a.data;
  while (depth > 0) {
    const int64_t steps = depth < a.block ? depth : a.block;
    const T* from = block;
    for (int64_t k = 0; k < steps; ++k, from += a.column, b += b_row) {
      Vec right[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) right[v] = V::load(b + v * V::lanes);
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) {
        const T left = from[i * a.row];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[i][v] += left * right[v];
      }
    }
    depth -= steps;
    block += a.jump;
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) V::store(c + i * c_row + v * V::lanes, sum[i][v]);
  }
}

template <class V, int vectors, class T>
DEOCC_INLINE void multiply_columns(Left<T> a, const T* b, int64_t b_row, T* c, int64_t c_row, int64_t rows,
                                   int64_t depth, bool accumulate) {
  constexpr int most = V::registers == 32 ? 8 : 6;
  int64_t done = 0;
  for (; done + most <= rows; done += most, a.data += most * a.row, c += most * c_row) {
    multiply_tile<V, most, vectors>(a, b, b_row, c, c_row, depth, accumulate);
  }
  for (; done + 4 <= rows; done += 4, a.data += 4 * a.row, c += 4 * c_row) {
    multiply_tile<V, 4, vectors>(a, b, b_row, c, c_row, depth, accumulate);
  }
  for (; done + 2 <= rows; done += 2, a.data += 2 * a.row, c += 2 * c_row) {
    multiply_tile<V, 2, vectors>(a, b, b_row, c, c_row, depth, accumulate);
  }
  if (done < rows) multiply_tile<V, 1, vectors>(a, b, b_row, c, c_row, depth, accumulate);
}

template <class V, class T>
DEOCC_INLINE void multiply_panels(const Left<T>& a, const Panels<const T>& b, const Panels<T>& c, int64_t rows,
                                  int64_t columns, int64_t depth, bool accumulate) {
  constexpr int wide = 2 * V::lanes;
  for (int64_t n = 0; n < columns;) {
    if (columns - n >= wide) {
      multiply_columns<V, 2>(a, b.at(0, n), b.row, c.at(0, n), c.row, rows, depth, accumulate);
      n += wide;
    } else {
      multiply_columns<V, 1>(a, b.at(0, n), b.row, c.at(0, n), c.row, rows, depth, accumulate);
      n += V::lanes;
    }
  }
}

// c = a b, or c += a b: rows x depth by depth x columns.
template <class T>
void multiply(const Left<T>& a, const Panels<const T>& b, const Panels<T>& c, int64_t rows, int64_t columns,
              int64_t depth, bool accumulate) {
  by_width<T>([&](auto vector) DEOCC_BODY {
    multiply_panels<decltype(vector)>(a, b, c, rows, columns, depth, accumulate);
  });
}

}  // namespace deocc
