#include "../relational_distillation.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>
#include <vector>

#include "gemm.h"
#include "simd.h"

namespace deocc {
namespace {

constexpr int64_t kPad = 8;              // what is stored is padded with zeros to a multiple of this many rows, columns
constexpr int64_t kBlock = 1 << 16;      // elements of a block of columns: it stays in the second-level cache
constexpr int64_t kTile = 16;            // rows and columns of a Gram matrix that a thread takes at a time
constexpr int64_t kVertices = 64;        // vertices of triplets that are worked on together: a multiple of kPad
constexpr int64_t kPerThread = 1 << 16;  // operations below which a second thread costs more than it saves

int64_t padded(int64_t count) { return (count + kPad - 1) / kPad * kPad; }

// Elements from one row to the next: an odd number of cache lines, so that rows do not compete for the same ones.
int64_t stride(int64_t count) { return padded(count) | kPad; }

// Iterations of `operations` each that a thread must have at least.
int64_t grain(int64_t operations) { return kPerThread / std::max<int64_t>(operations, 1) + 1; }

// (N, N) in rows of `row` elements, padded(N) of them. The padding is 0.
struct Matrix {
  explicit Matrix(int64_t count) : row(stride(count)), data(padded(count) * row) {}

  double* at(int64_t i) { return data.data() + i * row; }
  const double* at(int64_t i) const { return data.data() + i * row; }

  int64_t row;
  std::vector<double> data;
};

// What is known of the points of one side.
struct Relations {
  explicit Relations(int64_t count) : shifted(count), inverse(count), length(count), half(padded(count)) {}

  // Square of the least length that this pair's difference is divided by.
  DEOCC_INLINE double least(int64_t i, int64_t j) const {
    return std::max(kNear * kNear * 2 * (half[i] + half[j]), kLeast * kLeast);
  }

  Matrix shifted;            // G[i,j] - G[j,j] / 2; before that G
  Matrix inverse;            // u
  Matrix length;             // d
  std::vector<double> half;  // G[i,i] / 2
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

// The sums of the lanes of `count` vectors, a multiple of the lanes, in their order.
template <class V, int count>
DEOCC_INLINE void lane_sums(typename V::type* v, double* to) {
  using Vec = typename V::type;
  decltype(Vec{} < Vec{}) even{}, odd{};
#pragma GCC unroll 8
  for (int l = 0; l < V::lanes; ++l) {
    even[l] = 2 * l;
    odd[l] = 2 * l + 1;
  }
#pragma GCC unroll 3
  for (int step = 2; step <= V::lanes; step *= 2) {
#pragma GCC unroll 16
    for (int p = 0; p < count / step; ++p) {
      v[p] = __builtin_shuffle(v[2 * p], v[2 * p + 1], even) + __builtin_shuffle(v[2 * p], v[2 * p + 1], odd);
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < count / V::lanes; ++p) V::store(to + p * V::lanes, v[p]);
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

// G of the centred rows of x (rows, depth).
template <class T>
void gram(const T* x, int64_t rows, int64_t depth, Matrix& g) {
  const int64_t columns = std::clamp(kBlock / padded(rows) / kPad * kPad, 4 * kPad, padded(depth));
  std::vector<double> block(padded(rows) * stride(columns));
  const int64_t tiles = (rows + kTile - 1) / kTile;
  for (int64_t first = 0; first < depth; first += columns) {
    const int64_t count = std::min(columns, depth - first);
    centre_block(x, rows, depth, first, count, block.data());
    const auto range = [&](int64_t begin, int64_t end) {
      int64_t i = 0, before = 0;  // tiles in the rows of tiles above
      for (int64_t index = begin; index < end; ++index) {
        while (index >= before + tiles - i) before += tiles - i++;
        gram_tile(block.data(), count, rows, g, i * kTile, (i + index - before) * kTile);
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

// Row i of the distances, their inverses and the shifted G, of which that row is still G.
template <class T>
void relate_row(const T* x, int64_t rows, int64_t depth, int64_t i, Relations& to, double* __restrict square) {
  const double* half = to.half.data();
  double* __restrict g = to.shifted.at(i);
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
  double* __restrict length = to.length.at(i);
  double* __restrict inverse = to.inverse.at(i);
  by_width<double>([&](auto) DEOCC_BODY {
    for (int64_t j = 0; j < rows; ++j) {
      const double d = std::sqrt(square[j]), inverted = 1 / std::sqrt(std::max(square[j], to.least(i, j)));
      length[j] = d;
      inverse[j] = square[j] == 0 ? 0 : inverted;
      g[j] -= half[j];
    }
  });
}

template <class T>
Relations relate(const Tensor& points) {
  const int64_t rows = points.size(0), depth = points.size(1);
  const T* x = static_cast<const T*>(points.const_data_ptr());
  Relations found(rows);
  gram(x, rows, depth, found.shifted);
  for (int64_t i = 0; i < rows; ++i) found.half[i] = found.shifted.at(i)[i] / 2;
  torch::stable::parallel_for(0, rows, grain(8 * rows), [&](int64_t begin, int64_t end) {
    std::vector<double> square(rows);
    for (int64_t i = begin; i < end; ++i) relate_row(x, rows, depth, i, found, square.data());
  });
  return found;
}

// h'(x), which keeps NaN, and h(x) = h' (x - h' / 2).
template <class Vec>
DEOCC_INLINE Vec huber_slope(const Vec& x) {
  const Vec one = Vec{} + 1.0, bounded = x > one ? one : x;
  return bounded < -one ? -one : bounded;
}

struct TripletSums {
  explicit TripletSums(int64_t count) : ends(count), weighted(count) {}

  Matrix ends;      // R
  Matrix weighted;  // V without u^2
};

// Triplets i, j, k for `count` consecutive i and k (1 or 2 of each) and the vertices j from begin to end. Returns the
// sum of h, in lanes; adds to the sums, and S to `both`. `same`: i and k are one point, which adds once.
template <class V, int count, bool same, bool gradient>
DEOCC_INLINE typename V::type triplets(const Relations& student, const Relations& teacher, int64_t i, int64_t k,
                                       int64_t begin, int64_t end, TripletSums* sums, double* both) {
  using Vec = typename V::type;
  const int64_t row = student.shifted.row;
  Vec loss{}, weights[std::max(count * count, V::lanes)] = {};
  double inner[2][count][count];  // G[i,k]
#pragma GCC unroll 2
  for (int a = 0; a < count; ++a) {
#pragma GCC unroll 2
    for (int b = 0; b < count; ++b) {
      inner[0][a][b] = student.shifted.at(i + a)[k + b] + student.half[k + b];
      inner[1][a][b] = teacher.shifted.at(i + a)[k + b] + teacher.half[k + b];
    }
  }
  const double *gs = student.shifted.data.data(), *us = student.inverse.data.data();
  const double *gt = teacher.shifted.data.data(), *ut = teacher.inverse.data.data();
  double* ends = gradient ? sums->ends.data.data() : nullptr;
  double* weighted = gradient ? sums->weighted.data.data() : nullptr;
  for (int64_t j = begin; j < end; j += V::lanes) {
    Vec end_k[count] = {}, weighted_k[count] = {};
#pragma GCC unroll 2
    for (int a = 0; a < count; ++a) {
      const int64_t at = (i + a) * row + j;
      const Vec gs_i = V::load(gs + at), gt_i = V::load(gt + at), us_i = V::load(us + at), ut_i = V::load(ut + at);
      Vec end_i{}, weighted_i{};
#pragma GCC unroll 2
      for (int b = 0; b < count; ++b) {
        const int64_t to = (k + b) * row + j;
        const Vec u = us_i * V::load(us + to);
        const Vec angle = (inner[0][a][b] - gs_i - V::load(gs + to)) * u;
        const Vec wanted = (inner[1][a][b] - gt_i - V::load(gt + to)) * (ut_i * V::load(ut + to));
        const Vec difference = angle - wanted;
        const Vec slope = huber_slope(difference);
        loss += slope * (difference - 0.5 * slope);
        if constexpr (gradient) {
          const Vec weight = slope * u;
          weights[a * count + b] += weight;
          end_i += weight;
          weighted_i += slope * angle;
          if constexpr (!same) {
            end_k[b] += weight;
            weighted_k[b] += slope * angle;
          }
        }
      }
      if constexpr (gradient) {
        V::store(ends + at, V::load(ends + at) + end_i);
        V::store(weighted + at, V::load(weighted + at) + weighted_i);
      }
    }
    if constexpr (gradient && !same) {
#pragma GCC unroll 2
      for (int b = 0; b < count; ++b) {
        const int64_t to = (k + b) * row + j;
        V::store(ends + to, V::load(ends + to) + end_k[b]);
        V::store(weighted + to, V::load(weighted + to) + weighted_k[b]);
      }
    }
  }
  if constexpr (gradient && !same) {
    constexpr int total = std::max(count * count, V::lanes);
    double share[total];
    lane_sums<V, total>(weights, share);
    for (int a = 0; a < count; ++a) {
      for (int b = 0; b < count; ++b) both[(i + a) * row + k + b] += share[a * count + b];
    }
  }
  return loss;
}

// All triplets with vertices from begin to end: returns the sum of h.
template <class V, bool gradient>
DEOCC_INLINE double all_triplets(const Relations& student, const Relations& teacher, int64_t rows, int64_t begin,
                                 int64_t end, TripletSums* sums, double* both) {
  typename V::type once{}, twice{};  // i and k the same; i and k in either order
  for (int64_t i = 0; i < rows; i += 2) {
    once += triplets<V, 1, true, gradient>(student, teacher, i, i, begin, end, sums, both);
    once += triplets<V, 1, true, gradient>(student, teacher, i + 1, i + 1, begin, end, sums, both);
    twice += triplets<V, 1, false, gradient>(student, teacher, i, i + 1, begin, end, sums, both);
    for (int64_t k = i + 2; k < rows; k += 2) {
      twice += triplets<V, 2, false, gradient>(student, teacher, i, k, begin, end, sums, both);
    }
  }
  double sum = 0;
  for (int l = 0; l < V::lanes; ++l) sum += once[l] + 2 * twice[l];
  return sum;
}

// The sum of h over all triplets. With sums, adds the factors of the gradient to them; `both` becomes S, above the
// diagonal.
double compare_angles(const Relations& student, const Relations& teacher, int64_t rows, TripletSums* sums,
                      std::vector<double>& both) {
  const int64_t row = student.shifted.row, columns = padded(rows);
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), rows * rows * rows / kPerThread + 1);
  const int64_t vertices = std::min(kVertices, padded((rows + threads - 1) / threads));
  const int64_t blocks = (columns + vertices - 1) / vertices, parts = std::min(threads, blocks);
  std::vector<double> losses(parts), shares(sums ? parts * columns * row : 0);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      double* share = sums ? shares.data() + part * columns * row : nullptr;
      for (int64_t block = part * blocks / parts; block < (part + 1) * blocks / parts; ++block) {
        const int64_t begin = block * vertices, end = std::min(begin + vertices, columns);
        by_width<double>([&](auto vector) DEOCC_BODY {
          using V = decltype(vector);
          losses[part] += sums ? all_triplets<V, true>(student, teacher, rows, begin, end, sums, share)
                               : all_triplets<V, false>(student, teacher, rows, begin, end, sums, share);
        });
      }
    }
  });
  double sum = 0;
  for (const double loss : losses) sum += loss;
  if (!sums) return sum;
  for (int64_t part = 1; part < parts; ++part) {
    for (int64_t k = 0; k < columns * row; ++k) shares[k] += shares[part * columns * row + k];
  }
  both = std::move(shares);
  return sum;
}

// One over the mean of the distances that are not 0, and how many they are; 0 when there are none.
std::tuple<double, double> mean_distance(const Matrix& length) {
  std::array<double, kPad> sums{}, counts{};
  by_width<double>([&](auto) DEOCC_BODY {
    for (int64_t k = 0; k < static_cast<int64_t>(length.data.size()); k += kPad) {
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
    for (int64_t k = 0; k < static_cast<int64_t>(student.data.size()); k += kPad) {
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

template <class T>
double compute(const Tensor& student_, const Tensor& teacher_, double distance, double angle, double* matrix) {
  const int64_t rows = student_.size(0);
  const Relations student = relate<T>(student_), teacher = relate<T>(teacher_);
  const double size = static_cast<double>(rows);
  if (matrix) std::fill_n(matrix, rows * rows, 0.0);
  double loss = 0;

  if (distance != 0) {
    const double factor = distance / (size * size);
    const Distances found = compare_distances(student.length, teacher.length);
    loss += factor * found.loss;
    for (int64_t i = 0; matrix && i < rows; ++i) {
      const double *ds = student.length.at(i), *dt = teacher.length.at(i);
      for (int64_t j = i + 1; j < rows; ++j) {
        if (ds[j] == 0) continue;
        const double slope = found.slope(ds[j], dt[j]) * found.by_student - found.shared;
        matrix[i * rows + j] -= 2 * factor * slope / ds[j];
      }
    }
  }

  if (angle != 0) {
    const double factor = angle / (size * size * size);
    if (!matrix) {
      std::vector<double> none;
      return loss + factor * compare_angles(student, teacher, rows, nullptr, none);
    }
    TripletSums sums(rows);
    std::vector<double> both;
    loss += factor * compare_angles(student, teacher, rows, &sums, both);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = i + 1; j < rows; ++j) {
        const double d = student.length.at(i)[j], u = student.inverse.at(i)[j];
        const double free = d * d > student.least(i, j) ? u * u : 0;
        const double along = free * (sums.weighted.at(i)[j] + sums.weighted.at(j)[i]);
        const double ends = sums.ends.at(i)[j] + sums.ends.at(j)[i];
        matrix[i * rows + j] += 2 * factor * (both[i * sums.ends.row + j] - ends + along);
      }
    }
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
  std::vector<double> block(padded(rows) * row), product(rows * row);
  centre(x, rows, depth, first, count, block.data(), row);
  multiply<double>({matrix, rows, 1}, row_major<const double>(block.data(), row), row_major(product.data(), row), rows,
                   padded(count), rows, false);
  by_width<double>([&](auto) DEOCC_BODY {
    for (int64_t i = 0; i < rows; ++i) {
      T* to = out + i * depth + first;
      const double* from = product.data() + i * row;
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
