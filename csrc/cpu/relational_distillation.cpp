#include "../relational_distillation.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <new>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "gemm.h"
#include "simd.h"

namespace deocc {
namespace {

constexpr int64_t kPad = 8;              // what is stored is padded with zeros to a multiple of this many rows, columns
constexpr int64_t kBlock = 1 << 16;      // elements of a block of columns: it stays in the second-level cache
constexpr int64_t kTile = 16;            // rows and columns of a Gram matrix that a thread takes at a time
constexpr int kVertices = 6;             // 2 to this many vertices of triplets are worked on together, with
constexpr int64_t kEnds = kPad;          // this many ends, whose numbers stay in the first-level cache
constexpr int64_t kPerThread = 1 << 18;  // operations below which a second thread costs more than it saves

int64_t padded(int64_t count) { return (count + kPad - 1) / kPad * kPad; }

// Elements from one row to the next: an odd number of cache lines, so that rows do not compete for the same ones.
int64_t stride(int64_t count) { return padded(count) | kPad; }

// Iterations of `operations` each that a thread must have at least.
int64_t grain(int64_t operations) { return kPerThread / std::max<int64_t>(operations, 1) + 1; }

// All the memory of a call, in one piece that begins with a cache line: many pieces would be given back to the system
// and fetched again at every call. Counts must be multiples of kPad.
class Memory {
 public:
  explicit Memory(int64_t count) : left_(count), next_(new (kLine) double[count]), all_(next_) {}

  double* take(int64_t count) {
    STD_TORCH_CHECK(count <= left_, "relational_distillation: too little memory was set aside");
    left_ -= count;
    return std::exchange(next_, next_ + count);
  }

  double* take_zeros(int64_t count) {
    double* taken = take(count);
    std::fill_n(taken, count, 0.0);
    return taken;
  }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Delete {
    void operator()(double* all) const { ::operator delete[](all, kLine); }
  };

  int64_t left_;
  double* next_;
  std::unique_ptr<double[], Delete> all_;
};

// (N, N) in rows of `row` elements, padded(N) of them. The padding is 0.
struct Matrix {
  Matrix(int64_t count, Memory& memory) : row(stride(count)), size(needs(count)), data(memory.take_zeros(size)) {}

  static int64_t needs(int64_t count) { return padded(count) * stride(count); }

  double* at(int64_t i) { return data + i * row; }
  const double* at(int64_t i) const { return data + i * row; }

  int64_t row, size;
  double* data;
};

// Several numbers for each pair, so that what the pass over the triplets works on together lies together: blocks of
// 2^shift columns; in these padded(N) rows; in these kPad numbers of the first kind for kPad columns, kPad of the
// second, and so on. The padding is 0.
template <int fields>
struct Fields {
  Fields(int64_t count, int shift_, Memory& memory)
      : rows(padded(count)),
        row(int64_t(fields) << shift_),
        shift(shift_),
        data(memory.take_zeros(needs(count, shift_))) {}

  static int64_t blocks(int64_t count, int shift) { return (count + (int64_t(1) << shift) - 1) >> shift; }
  static int64_t needs(int64_t count, int shift) {
    return (blocks(count, shift) * padded(count) * fields) << shift;
  }

  // Column j must be a multiple of kPad.
  DEOCC_INLINE double* at(int64_t i, int64_t j) { return data + index(i, j); }
  DEOCC_INLINE const double* at(int64_t i, int64_t j) const { return data + index(i, j); }
  DEOCC_INLINE double get(int64_t i, int64_t j, int field) const {
    return data[index(i, j & -kPad) + field * kPad + (j & (kPad - 1))];
  }

  DEOCC_INLINE int64_t index(int64_t i, int64_t j) const {
    const int64_t block = j >> shift;
    return (block * rows + i) * row + (j - (block << shift)) * fields;
  }

  int64_t rows, row;  // of a block, and elements from one to the next
  int shift;
  double* data;
};

// What the pass over the triplets reads: of student, then of teacher, G[i,j] - G[j,j] / 2 and u.
using Pairs = Fields<4>;
enum { kShifted, kInverse };  // a side's fields, teacher's two further on

// What it adds up: R, and V without u^2.
using Sums = Fields<2>;
enum { kAcross, kAlong };

// The points of one side.
struct Side {
  Side(int64_t count, Memory& memory) : length(count, memory), half(memory.take_zeros(padded(count))) {}

  static int64_t needs(int64_t count) { return Matrix::needs(count) + padded(count); }

  // Square of the least length that this pair's difference is divided by.
  DEOCC_INLINE double least(int64_t i, int64_t j) const {
    return std::max(kNear * kNear * 2 * (half[i] + half[j]), kLeast * kLeast);
  }

  Matrix length;  // d
  double* half;   // G[i,i] / 2
};

// Half precision by way of float.
template <class T>
DEOCC_INLINE double wide(T value) {
  return static_cast<double>(static_cast<typename Compute<T>::type>(value));
}

// Writes `count` columns of x (rows, depth), from `first` on, minus their means, and zeros after the last row. `to` has
// rows of `row` elements.
template <class T>
void centre(const T* x, int64_t rows, int64_t depth, int64_t first, int64_t count, double* to, int64_t row) {
  std::vector<double> means(count);
  by_width<double>([&](auto) DEOCC_BODY {
    double* __restrict mean = means.data();
    for (int64_t i = 0; i < rows; ++i) {
      const T* from = x + i * depth + first;
      for (int64_t c = 0; c < count; ++c) mean[c] += wide(from[c]);
    }
    const double size = static_cast<double>(rows);
    for (int64_t c = 0; c < count; ++c) mean[c] /= size;
    for (int64_t i = 0; i < rows; ++i) {
      const T* from = x + i * depth + first;
      double* __restrict out = to + i * row;
      for (int64_t c = 0; c < count; ++c) out[c] = wide(from[c]) - mean[c];
    }
  });
  for (int64_t i = rows; i < padded(rows); ++i) std::fill_n(to + i * row, count, 0.0);
}

// The same for whole rows of stride(count) elements, on all threads.
template <class T>
void centre_block(const T* x, int64_t rows, int64_t depth, int64_t first, int64_t count, double* to) {
  const int64_t row = stride(count);
  for (int64_t i = 0; i < padded(rows); ++i) std::fill(to + i * row + count, to + (i + 1) * row, 0.0);
  torch::stable::parallel_for(0, count, grain(rows), [&](int64_t begin, int64_t end) {
    centre(x, rows, depth, first + begin, end - begin, to + begin, row);
  });
}

// Adds up neighbouring lanes of the vectors, count * lanes in all, until one sum is left of each, or of several lanes
// when there are more lanes than vectors.
template <class V, int count, int step = 2>
DEOCC_INLINE void fold_lanes(typename V::type* v) {
  if constexpr (step <= std::min(count, V::lanes)) {
    using Vec = typename V::type;
    decltype(Vec{} < Vec{}) even{}, odd{};
#pragma GCC unroll 8
    for (int l = 0; l < V::lanes; ++l) {
      even[l] = 2 * l;
      odd[l] = 2 * l + 1;
    }
    [&]<int... p>(std::integer_sequence<int, p...>) DEOCC_BODY {
      ((v[p] = __builtin_shuffle(v[2 * p], v[2 * p + 1], even) + __builtin_shuffle(v[2 * p], v[2 * p + 1], odd)), ...);
    }(std::make_integer_sequence<int, count / step>());
    fold_lanes<V, count, step * 2>(v);
  }
}

// The sums of the lanes of `count` vectors, a power of 2, in their order.
template <class V, int count>
DEOCC_INLINE void lane_sums(typename V::type* v, double* to) {
  fold_lanes<V, count>(v);
  if constexpr (count >= V::lanes) {
    for (int p = 0; p < count / V::lanes; ++p) V::store(to + p * V::lanes, v[p]);
  } else {
    constexpr int each = V::lanes / count;
    for (int p = 0; p < count; ++p) {
      to[p] = 0;
      for (int l = 0; l < each; ++l) to[p] += v[0][p * each + l];
    }
  }
}

// Adds to g the inner products of `rows` rows at a with `columns` rows at b.
template <class V, int rows, int columns>
DEOCC_INLINE void inner_products(const double* a, const double* b, int64_t row, int64_t depth, double* g, int64_t g_row) {
  using Vec = typename V::type;
  Vec sum[rows * columns] = {};
  for (int64_t k = 0; k < depth; k += V::lanes) {
    Vec right[columns];
#pragma GCC unroll 4
    for (int j = 0; j < columns; ++j) right[j] = V::load(b + j * row + k);
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) {
      const Vec left = V::load(a + i * row + k);
#pragma GCC unroll 4
      for (int j = 0; j < columns; ++j) sum[i * columns + j] += left * right[j];
    }
  }
  double sums[rows * columns];
  lane_sums<V, rows * columns>(sum, sums);
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) g[i * g_row + j] += sums[i * columns + j];
  }
}

// Adds the block's share to a tile of G, at rows i and columns j on or above the diagonal.
void gram_tile(const double* block, int64_t count, int64_t rows, Matrix& g, int64_t i, int64_t j) {
  const int64_t last_row = std::min(i + kTile, padded(rows)), last_column = std::min(j + kTile, padded(rows));
  const int64_t row = stride(count);
  by_width<double>([&](auto vector) DEOCC_BODY {
    using V = decltype(vector);
    constexpr int columns = V::registers == 32 ? 4 : 2;
    for (int64_t r = i; r < last_row; r += 4) {
      for (int64_t c = j; c < last_column; c += columns) {
        inner_products<V, 4, columns>(block + r * row, block + c * row, row, padded(count), g.at(r) + c, g.row);
      }
    }
  });
}

// How many columns of (rows, depth) make a block.
int64_t columns_of_block(int64_t rows, int64_t depth) {
  return std::min(std::max(kBlock / padded(rows) / kPad * kPad, 4 * kPad), padded(depth));
}

int64_t block_needs(int64_t rows, int64_t depth) { return padded(rows) * stride(columns_of_block(rows, depth)); }

// Adds G of the centred rows of x (rows, depth). `block` is of the size block_needs.
template <class T>
void gram(const T* x, int64_t rows, int64_t depth, double* block, Matrix& g) {
  const int64_t columns = columns_of_block(rows, depth);
  const int64_t tiles = (rows + kTile - 1) / kTile;
  for (int64_t first = 0; first < depth; first += columns) {
    const int64_t count = std::min(columns, depth - first);
    centre_block(x, rows, depth, first, count, block);
    const auto range = [&](int64_t begin, int64_t end) {
      int64_t i = 0, before = 0;  // tiles in the rows of tiles above
      for (int64_t index = begin; index < end; ++index) {
        while (index >= before + tiles - i) before += tiles - i++;
        gram_tile(block, count, rows, g, i * kTile, (i + index - before) * kTile);
      }
    };
    torch::stable::parallel_for(0, tiles * (tiles + 1) / 2, grain(kTile * kTile * count), range);
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = i + 1; j < rows; ++j) g.at(j)[i] = g.at(i)[j];
  }
}

// |a - b|^2 of two rows, taken from their difference.
template <class T>
double square_of_difference(const T* a, const T* b, int64_t depth) {
  std::array<double, kPad> sums{};
  by_width<double>([&](auto) DEOCC_BODY {
    int64_t k = 0;
    for (; k + kPad <= depth; k += kPad) {
      for (int64_t l = 0; l < kPad; ++l) {
        const double difference = wide(a[k + l]) - wide(b[k + l]);
        sums[l] += difference * difference;
      }
    }
    for (; k < depth; ++k) {
      const double difference = wide(a[k]) - wide(b[k]);
      sums[k % kPad] += difference * difference;
    }
  });
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

// Row i of the distances and, where they are wanted, of the fields for triplets, from row i of G.
template <class T>
void relate_row(const T* x, int64_t rows, int64_t depth, int64_t i, const double* __restrict g, Side& side,
                Pairs* pairs, int first_field, double* __restrict square) {
  const double* half = side.half;
  int64_t close = 0;
  by_width<double>([&](auto) DEOCC_BODY {
    for (int64_t j = 0; j < rows; ++j) {
      const double norms = 2 * (half[i] + half[j]);
      square[j] = norms - 2 * g[j];
      close += square[j] <= kClose * kClose * norms;
    }
  });
  square[i] = 0;
  for (int64_t j = 0; close > 1 && j < rows; ++j) {
    if (j == i || !(square[j] <= kClose * kClose * 2 * (half[i] + half[j]))) continue;
    square[j] = square_of_difference(x + i * depth, x + j * depth, depth);
  }
  double* __restrict length = side.length.at(i);
  by_width<double>([&](auto) DEOCC_BODY {
    for (int64_t j = 0; j < padded(rows); ++j) length[j] = std::sqrt(square[j]);
    for (int64_t j = 0; pairs && j < rows; j += kPad) {
      double* __restrict to = pairs->at(i, j) + first_field * kPad;
      for (int64_t l = 0; l < kPad; ++l) {
        const double inverted = 1 / std::sqrt(std::max(square[j + l], side.least(i, j + l)));
        to[kShifted * kPad + l] = g[j + l] - half[j + l];
        to[kInverse * kPad + l] = square[j + l] == 0 ? 0 : inverted;
      }
    }
  });
}

template <class T>
Side relate(const Tensor& points, Pairs* pairs, int first_field, Memory& memory, double* block, Matrix& g) {
  const int64_t rows = points.size(0), depth = points.size(1);
  const T* x = static_cast<const T*>(points.const_data_ptr());
  Side side(rows, memory);
  std::fill_n(g.data, g.size, 0.0);
  gram(x, rows, depth, block, g);
  for (int64_t i = 0; i < rows; ++i) side.half[i] = g.at(i)[i] / 2;
  torch::stable::parallel_for(0, rows, grain(8 * rows), [&](int64_t begin, int64_t end) {
    std::vector<double> square(padded(rows));
    for (int64_t i = begin; i < end; ++i) {
      relate_row(x, rows, depth, i, g.at(i), side, pairs, first_field, square.data());
    }
  });
  return side;
}

// h'(x), which keeps NaN, and h(x) = h' (x - h' / 2).
template <class Vec>
DEOCC_INLINE Vec huber_slope(const Vec& x) {
  const Vec one = Vec{} + 1.0, bounded = x > one ? one : x;
  return bounded < -one ? -one : bounded;
}

// Triplets with the end i, the ends k to k + count - 1, and the vertices j from begin to end. Returns the sum of h, in
// lanes; adds to the sums, and S to `both`. `same`: i and k are one point, which adds once.
template <class V, int count, bool same, bool gradient>
DEOCC_INLINE typename V::type triplets(const Pairs& pairs, const Side& student, const Side& teacher, int64_t i,
                                       int64_t k, int64_t begin, int64_t end, Sums* sums, double* both) {
  using Vec = typename V::type;
  Vec losses[count] = {}, weights[count] = {}, inner_s[count], inner_t[count];
  for (int b = 0; b < count; ++b) {
    inner_s[b] = Vec{} + (pairs.get(i, k + b, kShifted) + student.half[k + b]);
    inner_t[b] = Vec{} + (pairs.get(i, k + b, 2 + kShifted) + teacher.half[k + b]);
  }
  const int64_t row = pairs.row, sums_row = row / 2;
  const double *of_i = pairs.at(i, begin), *of_k = pairs.at(k, begin);
  double* to_i = gradient ? sums->at(i, begin) : nullptr;
  double* to_k = gradient ? sums->at(k, begin) : nullptr;
  for (int64_t j = begin; j < end; j += kPad, of_i += 4 * kPad, of_k += 4 * kPad) {
#pragma GCC unroll 4
    for (int lane = 0; lane < kPad; lane += V::lanes) {
      const auto load = [&](const double* from, int field) DEOCC_BODY { return V::load(from + field * kPad + lane); };
      const auto add = [&](double* to, int field, const Vec& value) DEOCC_BODY {
        V::store(to + field * kPad + lane, V::load(to + field * kPad + lane) + value);
      };
      const Vec gs = load(of_i, kShifted), us = load(of_i, kInverse);
      const Vec gt = load(of_i, 2 + kShifted), ut = load(of_i, 2 + kInverse);
      Vec across{}, along{};
#pragma GCC unroll 4
      for (int b = 0; b < count; ++b) {
        const double* other = of_k + b * row;
        const Vec u = us * load(other, kInverse);
        const Vec angle = (inner_s[b] - gs - load(other, kShifted)) * u;
        const Vec wanted = (inner_t[b] - gt - load(other, 2 + kShifted)) * (ut * load(other, 2 + kInverse));
        const Vec difference = angle - wanted;
        const Vec slope = huber_slope(difference);
        losses[b] += slope * (difference - 0.5 * slope);
        if constexpr (gradient) {
          const Vec weight = slope * u;
          weights[b] += weight;
          across += weight;
          along += slope * angle;
          if constexpr (!same) {
            add(to_k + b * sums_row, kAcross, weight);
            add(to_k + b * sums_row, kAlong, slope * angle);
          }
        }
      }
      if constexpr (gradient) {
        add(to_i, kAcross, across);
        add(to_i, kAlong, along);
      }
    }
    if constexpr (gradient) {
      to_i += 2 * kPad;
      to_k += 2 * kPad;
    }
  }
  if constexpr (gradient && !same) {
    double share[std::max(count, V::lanes)];
    lane_sums<V, count>(weights, share);
    for (int b = 0; b < count; ++b) both[k + b] += share[b];
  }
  Vec loss = losses[0];
  for (int b = 1; b < count; ++b) loss += losses[b];
  return loss;
}

// All triplets with vertices from begin to end: returns the sum of h. `both` has rows of `row` elements.
template <class V, bool gradient>
DEOCC_INLINE double all_triplets(const Pairs& pairs, const Side& student, const Side& teacher, int64_t rows,
                                 int64_t begin, int64_t end, Sums* sums, double* both, int64_t row) {
  typename V::type once{}, twice{};  // i and k the same; i and k in either order
  for (int64_t first = 0; first < rows; first += kEnds) {
    for (int64_t i = 0; i < first; ++i) {
      for (int64_t k = first; k < first + kEnds; k += 4) {
        twice += triplets<V, 4, false, gradient>(pairs, student, teacher, i, k, begin, end, sums, both + i * row);
      }
    }
    for (int64_t i = first; i < std::min(first + kEnds, rows); ++i) {
      once += triplets<V, 1, true, gradient>(pairs, student, teacher, i, i, begin, end, sums, both + i * row);
      for (int64_t k = i + 1; k < std::min(first + kEnds, rows); ++k) {
        twice += triplets<V, 1, false, gradient>(pairs, student, teacher, i, k, begin, end, sums, both + i * row);
      }
    }
  }
  double sum = 0;
  for (int l = 0; l < V::lanes; ++l) sum += once[l] + 2 * twice[l];
  return sum;
}

// The sum of h over all triplets, in so many parts at a time. With sums, adds the factors of the gradient to them, and S
// above the diagonal to `both`, which is a matrix for each part.
double compare_angles(const Pairs& pairs, const Side& student, const Side& teacher, int64_t rows, int64_t parts,
                      Sums* sums, double* both) {
  const int64_t row = stride(rows), size = Matrix::needs(rows), vertices = int64_t(1) << pairs.shift;
  const int64_t blocks = Pairs::blocks(rows, pairs.shift);
  std::vector<double> losses(parts);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      double* share = sums ? both + part * size : nullptr;
      for (int64_t block = part * blocks / parts; block < (part + 1) * blocks / parts; ++block) {
        const int64_t begin = block * vertices, end = std::min(begin + vertices, padded(rows));
        by_width<double>([&](auto vector) DEOCC_BODY {
          using V = decltype(vector);
          losses[part] +=
              sums ? all_triplets<V, true>(pairs, student, teacher, rows, begin, end, sums, share, row)
                   : all_triplets<V, false>(pairs, student, teacher, rows, begin, end, nullptr, nullptr, 0);
        });
      }
    }
  });
  for (int64_t part = 1; part < parts; ++part) {
    for (int64_t k = 0; sums && k < size; ++k) both[k] += both[part * size + k];
  }
  double sum = 0;
  for (const double loss : losses) sum += loss;
  return sum;
}

// One over the mean of the distances that are not 0, and how many they are; 0 when there are none.
std::tuple<double, double> mean_distance(const Matrix& length) {
  std::array<double, kPad> sums{}, counts{};
  by_width<double>([&](auto) DEOCC_BODY {
    for (int64_t k = 0; k < length.size; k += kPad) {
      for (int64_t l = 0; l < kPad; ++l) {
        const double d = length.data[k + l];
        sums[l] += d;
        counts[l] += d != 0 ? 1.0 : 0.0;
      }
    }
  });
  double sum = 0, count = 0;
  for (int64_t l = 0; l < kPad; ++l) sum += sums[l], count += counts[l];
  return {count > 0 ? count / sum : 0.0, count};
}

struct Distances {
  double by_student, by_teacher;  // 1 / mean
  double loss;                    // sum of h over all pairs
  double shared;                  // C

  // h' of a pair.
  DEOCC_INLINE double slope(double student, double teacher) const {
    return std::clamp(student * by_student - teacher * by_teacher, -1.0, 1.0);
  }
};

Distances compare_distances(const Matrix& student, const Matrix& teacher) {
  const auto [by_student, count] = mean_distance(student);
  const double by_teacher = std::get<0>(mean_distance(teacher));
  std::array<double, kPad> losses{}, products{};
  by_width<double>([&](auto) DEOCC_BODY {
    for (int64_t k = 0; k < student.size; k += kPad) {
      for (int64_t l = 0; l < kPad; ++l) {
        const double d = student.data[k + l], difference = d * by_student - teacher.data[k + l] * by_teacher;
        const double bounded = difference > 1 ? 1 : difference, slope = bounded < -1 ? -1 : bounded;
        losses[l] += slope * (difference - 0.5 * slope);
        products[l] += slope * d;
      }
    }
  });
  double loss = 0, product = 0;
  for (int64_t l = 0; l < kPad; ++l) loss += losses[l], product += products[l];
  return {by_student, by_teacher, loss, count > 0 ? product * by_student * by_student / count : 0.0};
}

// Adds the distances' share, times factor, to the part of M above the diagonal; returns the sum of h.
double add_distances(const Side& student, const Side& teacher, int64_t rows, double factor, double* matrix) {
  const Distances found = compare_distances(student.length, teacher.length);
  if (!matrix) return found.loss;
  torch::stable::parallel_for(0, rows, grain(4 * rows), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double *ds = student.length.at(i), *dt = teacher.length.at(i);
      for (int64_t j = i + 1; j < rows; ++j) {
        if (ds[j] == 0) continue;
        const double slope = found.slope(ds[j], dt[j]) * found.by_student - found.shared;
        matrix[i * rows + j] -= 2 * factor * slope / ds[j];
      }
    }
  });
  return found.loss;
}

// The same of the angles. `sums` and `both`, as in compare_angles, are null where M is.
double add_angles(const Pairs& pairs, const Side& student, const Side& teacher, int64_t rows, double factor,
                  int64_t parts, Sums* sums, double* both, double* matrix) {
  const double loss = compare_angles(pairs, student, teacher, rows, parts, sums, both);
  if (!matrix) return loss;
  torch::stable::parallel_for(0, rows, grain(16 * rows), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = i + 1; j < rows; ++j) {
        const double d = student.length.at(i)[j], u = pairs.get(i, j, kInverse);
        const double free = d * d > student.least(i, j) ? u * u : 0;
        const double along = free * (sums->get(i, j, kAlong) + sums->get(j, i, kAlong));
        const double across = sums->get(i, j, kAcross) + sums->get(j, i, kAcross);
        matrix[i * rows + j] += 2 * factor * (both[i * stride(rows) + j] - across + along);
      }
    }
  });
  return loss;
}

// The loss and, unless it is null, M.
template <class T>
double compute(const Tensor& student_, const Tensor& teacher_, double distance, double angle, double* matrix) {
  const int64_t rows = student_.size(0), deepest = std::max(student_.size(1), teacher_.size(1));
  const bool angles = angle != 0, sums_too = angles && matrix;
  const int64_t threads =
      std::min<int64_t>(torch::stable::get_num_threads(), rows * rows * rows / kPerThread + 1);
  int shift = kVertices;  // each thread ought to have a block of vertices
  while ((int64_t(1) << shift) > kPad && (threads << shift) > padded(rows)) --shift;
  const int64_t parts = std::min(threads, Pairs::blocks(rows, shift));

  Memory memory(2 * Side::needs(rows) + Matrix::needs(rows) + block_needs(rows, deepest) +
                (angles ? Pairs::needs(rows, shift) : 0) +
                (sums_too ? Sums::needs(rows, shift) + parts * Matrix::needs(rows) : 0));
  Matrix g(rows, memory);
  double* block = memory.take(block_needs(rows, deepest));
  std::optional<Pairs> pairs;
  if (angles) pairs.emplace(rows, shift, memory);
  Pairs* fields = pairs ? &*pairs : nullptr;
  const Side student = relate<T>(student_, fields, 0, memory, block, g);
  const Side teacher = relate<T>(teacher_, fields, 2, memory, block, g);
  const double size = static_cast<double>(rows);
  if (matrix) std::fill_n(matrix, rows * rows, 0.0);
  double loss = 0;
  if (distance != 0) {
    const double factor = distance / (size * size);
    loss += factor * add_distances(student, teacher, rows, factor, matrix);
  }
  if (angle != 0) {
    const double factor = angle / (size * size * size);
    std::optional<Sums> sums;
    if (sums_too) sums.emplace(rows, shift, memory);
    double* both = sums_too ? memory.take_zeros(parts * Matrix::needs(rows)) : nullptr;
    loss += factor * add_angles(*pairs, student, teacher, rows, factor, parts, sums ? &*sums : nullptr, both, matrix);
  }
  for (int64_t i = 0; matrix && i < rows; ++i) {
    for (int64_t j = i + 1; j < rows; ++j) {
      const double value = matrix[i * rows + j];
      matrix[j * rows + i] = value;
      matrix[i * rows + i] -= value;
      matrix[j * rows + j] -= value;
    }
  }
  return loss;
}

std::tuple<Tensor, Tensor> relational_distillation(const Tensor& student_, const Tensor& teacher_, double distance,
                                                   double angle, bool gradient) {
  check_relations(student_, teacher_);
  const Tensor student = torch::stable::contiguous(student_), teacher = torch::stable::contiguous(teacher_);
  const int64_t rows = student.size(0), side = gradient ? rows : 0;
  const Tensor loss = empty(student, {});
  const Tensor matrix =
      torch::stable::empty({side, side}, ScalarType::Double, std::nullopt, student.device(), std::nullopt);
  for_dtype(student.scalar_type(), "relational_distillation", [&](auto zero) {
    using T = decltype(zero);
    double* to = gradient && rows > 0 ? static_cast<double*>(matrix.mutable_data_ptr()) : nullptr;
    const double value = rows > 0 ? compute<T>(student, teacher, distance, angle, to) : 0.0;
    *static_cast<T*>(loss.mutable_data_ptr()) = static_cast<T>(static_cast<typename Compute<T>::type>(value));
  });
  return {loss, matrix};
}

// `count` columns of gradient times M x, from `first` on.
template <class T>
void backward_columns(double gradient, const double* matrix, const T* x, int64_t rows, int64_t depth, int64_t first,
                      int64_t count, T* out) {
  const int64_t row = stride(count);
  Memory memory(2 * padded(rows) * row);
  double *block = memory.take(padded(rows) * row), *product = memory.take(padded(rows) * row);
  centre(x, rows, depth, first, count, block, row);
  multiply<double>({matrix, rows, 1}, row_major<const double>(block, row), row_major(product, row), rows,
                   padded(count), rows, false);
  by_width<double>([&](auto) DEOCC_BODY {
    for (int64_t i = 0; i < rows; ++i) {
      T* to = out + i * depth + first;
      const double* from = product + i * row;
      for (int64_t c = 0; c < count; ++c) {
        to[c] = static_cast<T>(static_cast<typename Compute<T>::type>(gradient * from[c]));
      }
    }
  });
}

Tensor relational_distillation_backward(const Tensor& gradient, const Tensor& matrix_, const Tensor& student_) {
  check_relations_backward(gradient, matrix_, student_);
  const Tensor student = torch::stable::contiguous(student_), matrix = torch::stable::contiguous(matrix_);
  const Tensor out = empty(student, student.sizes());
  const int64_t rows = student.size(0), depth = student.size(1);
  if (out.numel() == 0) return out;

  for_dtype(student.scalar_type(), "relational_distillation_backward", [&](auto zero) {
    using T = decltype(zero);
    const double factor = wide(*static_cast<const T*>(gradient.const_data_ptr()));
    const T* x = static_cast<const T*>(student.const_data_ptr());
    const double* m = static_cast<const double*>(matrix.const_data_ptr());
    T* to = static_cast<T*>(out.mutable_data_ptr());
    const int64_t columns = std::clamp<int64_t>(kBlock / 4 / padded(rows) / kPanel * kPanel, kPanel, 4 * kPanel);
    const int64_t blocks = (depth + columns - 1) / columns;
    torch::stable::parallel_for(0, blocks, grain(rows * rows * columns), [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * columns;
        backward_columns(factor, m, x, rows, depth, first, std::min(columns, depth - first), to);
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace deocc

STABLE_TORCH_LIBRARY_IMPL(deocc, CPU, m) {
  m.impl("relational_distillation", TORCH_BOX(&deocc::relational_distillation));
  m.impl("relational_distillation_backward", TORCH_BOX(&deocc::relational_distillation_backward));
}
