// Features are a matrix with one long side. Its rows, which lie in memory one after the other, are channels of pixels
// or, channels last, pixels of channels; so each of the three products below serves both orders, in changed roles.
// All of them are bound by memory: every element of the features is read or written once, four rows at a time, which
// the processor can follow.
#include "../dual_attention_fusion.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <type_traits>
#include <utility>
#include <vector>

#include "exponential.h"
#include "simd.h"

namespace deocc {
namespace {

constexpr int64_t kChunk = 1024;         // elements of a row that are worked on together: they stay in the first cache
constexpr int64_t kSegment = 4096;       // pixels that are summed up on their own, channels last
constexpr int kRows = 4;                 // rows that are read together
constexpr int kOutputs = 4;              // outputs that are summed up together
constexpr int64_t kPerThread = 1 << 15;  // elements below which a second thread costs more than it saves

constexpr int64_t kAhead = 8192;         // bytes: how far ahead of what is read in order memory is asked for more

int64_t pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Tasks for one thread, when each of them touches `elements`.
int64_t grain(int64_t elements) { return std::max<int64_t>(kPerThread / std::max<int64_t>(elements, 1), 1); }

// Calls body(std::integral_constant<int, count>()) for a count of 1 to 4.
template <class Body>
DEOCC_INLINE void with_count(int64_t count, const Body& body) {
  switch (count) {
    case 1:
      return body(std::integral_constant<int, 1>());
    case 2:
      return body(std::integral_constant<int, 2>());
    case 3:
      return body(std::integral_constant<int, 3>());
    default:
      return body(std::integral_constant<int, 4>());
  }
}

// Ask memory for elements that will be read soon: on its own, the processor stops at the end of each page, and that is
// where the next row of pixels begins. There need not be any elements.
template <class T>
DEOCC_INLINE void expect(const T* from, int64_t count) {
  const char* at = reinterpret_cast<const char*>(from);
  for (int64_t k = 0; k < count * static_cast<int64_t>(sizeof(T)); k += 64) __builtin_prefetch(at + k);
}

// Elements in the type that they are computed in: where they are, or converted into the buffer.
template <class T, class F>
DEOCC_INLINE const F* widened(const T* from, int64_t count, F* buffer) {
  if constexpr (std::is_same_v<T, F>) {
    return from;
  } else {
    for (int64_t k = 0; k < count; ++k) buffer[k] = static_cast<F>(from[k]);
    return buffer;
  }
}

template <class T, class F>
DEOCC_INLINE void store(const F* from, int64_t count, T* to) {
  for (int64_t k = 0; k < count; ++k) to[k] = static_cast<T>(from[k]);
}

template <class V>
DEOCC_INLINE typename V::Element sum_of(const typename V::type& vector) {
  if constexpr (V::lanes == 1) {
    return vector[0];
  } else {
    using Half = Vector<typename V::Element, sizeof(vector) / 2>;
    typename Half::type low, high;
    __builtin_memcpy(&low, &vector, sizeof low);
    __builtin_memcpy(&high, reinterpret_cast<const char*>(&vector) + sizeof low, sizeof high);
    return sum_of<Half>(low + high);
  }
}

// sums[o][k] += sum over r of factors[o][r] * rows[r][k]; factors[o] begin at factors + o * factor_step, their elements
// are factor_row apart; sums[o] begin at sums + o * sum_step.
template <class V, int outputs, int rows, class F>
DEOCC_INLINE void accumulate(const F* const* row, const F* factors, int64_t factor_step, int64_t factor_row, F* sums,
                             int64_t sum_step, int64_t count) {
  using Vec = typename V::type;
  F factor[outputs][rows];
  for (int o = 0; o < outputs; ++o) {
    for (int r = 0; r < rows; ++r) factor[o][r] = factors[o * factor_step + r * factor_row];
  }
  int64_t k = 0;
  for (; k + V::lanes <= count; k += V::lanes) {
    Vec value[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) value[r] = V::load(row[r] + k);
#pragma GCC unroll 4
    for (int o = 0; o < outputs; ++o) {
      Vec sum = V::load(sums + o * sum_step + k);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) sum += factor[o][r] * value[r];
      V::store(sums + o * sum_step + k, sum);
    }
  }
  for (; k < count; ++k) {
    for (int o = 0; o < outputs; ++o) {
      F sum = sums[o * sum_step + k];
      for (int r = 0; r < rows; ++r) sum += factor[o][r] * row[r][k];
      sums[o * sum_step + k] = sum;
    }
  }
}

// sums[o][r] += sum over k of x[o][k] * rows[r][k].
template <class V, int outputs, int rows, class F>
DEOCC_INLINE void dots(const F* const* x, const F* const* row, int64_t count, F* sums, int64_t sum_step,
                       int64_t sum_row) {
  using Vec = typename V::type;
  Vec sum[outputs][rows] = {};
  int64_t k = 0;
  for (; k + V::lanes <= count; k += V::lanes) {
    Vec value[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) value[r] = V::load(row[r] + k);
#pragma GCC unroll 4
    for (int o = 0; o < outputs; ++o) {
      const Vec factor = V::load(x[o] + k);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) sum[o][r] += factor * value[r];
    }
  }
#pragma GCC unroll 4
  for (int o = 0; o < outputs; ++o) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      F total = sum_of<V>(sum[o][r]);
      for (int64_t rest = k; rest < count; ++rest) total += x[o][rest] * row[r][rest];
      sums[o * sum_step + r * sum_row] += total;
    }
  }
}

// to[r][k] = sum over t of factors[t][r] * x[t][k]; x[t] begin at x + t * x_step, factors as above.
template <class V, int rows, class F>
DEOCC_INLINE void spread(const F* x, int64_t x_step, const F* factors, int64_t factor_step, int64_t factor_row,
                         int64_t terms, F* const* to, int64_t count) {
  using Vec = typename V::type;
  int64_t k = 0;
  for (; k + V::lanes <= count; k += V::lanes) {
    Vec sum[rows] = {};
    for (int64_t t = 0; t < terms; ++t) {
      const Vec value = V::load(x + t * x_step + k);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) sum[r] += factors[t * factor_step + r * factor_row] * value;
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) V::store(to[r] + k, sum[r]);
  }
  for (; k < count; ++k) {
    for (int r = 0; r < rows; ++r) {
      F sum = 0;
      for (int64_t t = 0; t < terms; ++t) sum += factors[t * factor_step + r * factor_row] * x[t * x_step + k];
      to[r][k] = sum;
    }
  }
}

// Groups of four rows, then the rest one by one: body(first row, std::integral_constant<int, rows>()).
template <class Body>
DEOCC_INLINE void by_rows(int64_t begin, int64_t end, const Body& body) {
  for (; begin + kRows <= end; begin += kRows) body(begin, std::integral_constant<int, kRows>());
  for (; begin < end; ++begin) body(begin, std::integral_constant<int, 1>());
}

// Where the rows of features begin, and buffers to convert them into.
template <class T, class F>
struct Reader {
  std::vector<F> buffer = std::vector<F>(std::is_same_v<T, F> ? 0 : kRows * kChunk);
  const F* row[kRows];

  template <int rows>
  DEOCC_INLINE void read(const T* from, int64_t step, int64_t count) {
    for (int r = 0; r < rows; ++r) row[r] = widened(from + r * step, count, buffer.data() + r * kChunk);
  }
};

// out[n] = bias + folded features[n] for one sample. folded: (O, C).
template <class T, class F>
void project(const ProjectionSizes& n, const T* features, const F* folded, const F* bias, T* out) {
  const int64_t width = n.channels_last() ? std::max<int64_t>(kChunk / n.channels, kRows) : kChunk;
  const auto work = [&](int64_t begin, int64_t end) {
    by_width<F>([&](auto vector) DEOCC_BODY {
      using V = decltype(vector);
      Reader<T, F> reader;
      std::vector<F> sums(kOutputs * std::max(kChunk, width));
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task * width, count = std::min(width, n.pixels - first);
        for (int64_t o = 0; o < n.outputs; o += kOutputs) {
          with_count(std::min<int64_t>(kOutputs, n.outputs - o), [&](auto outputs) DEOCC_BODY {
            const F* factors = folded + o * n.channels;
            if (n.channels_last()) {
              const F* x[outputs.value];
              for (int64_t p = 0; p < count; ++p) {
                for (int i = 0; i < outputs; ++i) sums[p * outputs + i] = bias[o + i];
              }
              for (int64_t c = 0; c < n.channels; c += kChunk) {
                const int64_t channels = std::min(kChunk, n.channels - c);
                for (int i = 0; i < outputs; ++i) x[i] = factors + i * n.channels + c;
                by_rows(0, count, [&](int64_t p, auto rows) DEOCC_BODY {
                  reader.template read<rows.value>(features + (first + p) * n.channels + c, n.channels, channels);
                  dots<V, outputs.value, rows.value>(x, reader.row, channels, sums.data() + p * outputs, 1, outputs);
                });
              }
              for (int64_t p = 0; p < count; ++p) {
                store(sums.data() + p * outputs, outputs, out + (first + p) * n.outputs + o);
              }
            } else {
              for (int i = 0; i < outputs; ++i) std::fill_n(sums.data() + i * kChunk, count, bias[o + i]);
              by_rows(0, n.channels, [&](int64_t c, auto rows) DEOCC_BODY {
                const T* here = features + c * n.pixels + first;
                for (int r = 0; r < rows && c + rows + r < n.channels; ++r) expect(here + (rows + r) * n.pixels, count);
                reader.template read<rows.value>(here, n.pixels, count);
                accumulate<V, outputs.value, rows.value>(reader.row, factors + c, n.channels, 1, sums.data(), kChunk,
                                                         count);
              });
              for (int i = 0; i < outputs; ++i) {
                store(sums.data() + i * kChunk, count, out + (o + i) * n.pixels + first);
              }
            }
          });
        }
      }
    });
  };
  torch::stable::parallel_for(0, pieces(n.pixels, width), grain(width * n.channels), work);
}

// products[o][c] = sum over the sample's pixels of gradient[o] features[c]. Without a gradient it is 1 and there is one
// output, so these are the sums of the features. The order of summation does not depend on the number of threads.
template <class T, class F>
void multiply_pixels(const ProjectionSizes& n, const T* gradient, const T* features, F* products) {
  const int64_t outputs_ = gradient ? n.outputs : 1;
  if (!n.channels_last()) {
    const auto work = [&](int64_t begin, int64_t end) {
      by_width<F>([&](auto vector) DEOCC_BODY {
        using V = decltype(vector);
        constexpr int rows_ = V::registers == 32 ? kRows : kRows / 2;
        Reader<T, F> reader;
        std::vector<F> buffer(kOutputs * kChunk, F(1));
        for (int64_t task = begin; task < end; ++task) {
          const int64_t last = std::min((task + 1) * kRows, n.channels);
          for (int64_t o = 0; o < outputs_; ++o) {
            std::fill(products + o * n.channels + task * kRows, products + o * n.channels + last, F(0));
          }
          for (int64_t p = 0; p < n.pixels; p += kChunk) {
            const int64_t count = std::min(kChunk, n.pixels - p);
            for (int64_t o = 0; o < outputs_; o += kOutputs) {
              with_count(std::min<int64_t>(kOutputs, outputs_ - o), [&](auto outputs) DEOCC_BODY {
                const F* x[outputs.value];
                for (int i = 0; i < outputs; ++i) {
                  F* to = buffer.data() + i * kChunk;
                  x[i] = gradient ? widened(gradient + (o + i) * n.pixels + p, count, to) : to;
                }
                const auto some = [&](int64_t c, auto rows) DEOCC_BODY {
                  reader.template read<rows.value>(features + c * n.pixels + p, n.pixels, count);
                  dots<V, outputs.value, rows.value>(x, reader.row, count, products + o * n.channels + c, n.channels, 1);
                };
                int64_t c = task * kRows;
                for (; c + rows_ <= last; c += rows_) some(c, std::integral_constant<int, rows_>());
                for (; c < last; ++c) some(c, std::integral_constant<int, 1>());
              });
            }
          }
        }
      });
    };
    torch::stable::parallel_for(0, pieces(n.channels, kRows), grain(kRows * n.pixels), work);
    return;
  }
  const int64_t segments = pieces(n.pixels, kSegment), size = outputs_ * n.channels;
  std::vector<F> parts(segments * size);
  const auto work = [&](int64_t begin, int64_t end) {
    by_width<F>([&](auto vector) DEOCC_BODY {
      using V = decltype(vector);
      Reader<T, F> reader;
      std::vector<F> buffer(kRows * n.outputs, F(1));
      for (int64_t segment = begin; segment < end; ++segment) {
        const int64_t last = std::min((segment + 1) * kSegment, n.pixels);
        F* sums = parts.data() + segment * size;
        by_rows(segment * kSegment, last, [&](int64_t p, auto rows) DEOCC_BODY {
          const F* factors = buffer.data();
          if (gradient) factors = widened(gradient + p * n.outputs, rows * n.outputs, buffer.data());
          for (int64_t c = 0; c < n.channels; c += kChunk) {
            const int64_t channels = std::min(kChunk, n.channels - c);
            reader.template read<rows.value>(features + p * n.channels + c, n.channels, channels);
            for (int64_t o = 0; o < outputs_; o += kOutputs) {
              with_count(std::min<int64_t>(kOutputs, outputs_ - o), [&](auto outputs) DEOCC_BODY {
                accumulate<V, outputs.value, rows.value>(reader.row, factors + o, 1, n.outputs,
                                                         sums + o * n.channels + c, n.channels, channels);
              });
            }
          }
        });
      }
    });
  };
  torch::stable::parallel_for(0, segments, grain(std::min(kSegment, n.pixels) * n.channels), work);
  std::fill_n(products, size, F(0));
  for (int64_t segment = 0; segment < segments; ++segment) {
    for (int64_t k = 0; k < size; ++k) products[k] += parts[segment * size + k];
  }
}

// by_features[c] = shift[c] + sum over o of folded[o][c] gradient[o] for one sample: the shift is one more term, of 1.
template <class T, class F>
void spread_pixels(const ProjectionSizes& n, const T* gradient, const F* folded, const F* shift, T* by_features) {
  const int64_t terms = n.outputs + 1, width = n.channels_last() ? kRows * 16 : kChunk;
  std::vector<F> weights(folded, folded + n.outputs * n.channels);
  weights.insert(weights.end(), shift, shift + n.channels);
  const auto work = [&](int64_t begin, int64_t end) {
    by_width<F>([&](auto vector) DEOCC_BODY {
      using V = decltype(vector);
      std::vector<F> pixels(terms * width, F(1)), rows_(std::is_same_v<T, F> ? 0 : kRows * kChunk);
      F* to[kRows];
      // Computes `rows` rows of `count` elements, the first of them at `out`.
      const auto some = [&](auto rows, const F* x, int64_t x_step, const F* factors, int64_t factor_step,
                            int64_t factor_row, T* out, int64_t step, int64_t count) DEOCC_BODY {
        for (int r = 0; r < rows; ++r) {
          if constexpr (std::is_same_v<T, F>) {
            to[r] = out + r * step;
          } else {
            to[r] = rows_.data() + r * kChunk;
          }
        }
        spread<V, rows.value>(x, x_step, factors, factor_step, factor_row, terms, to, count);
        if constexpr (!std::is_same_v<T, F>) {
          for (int r = 0; r < rows; ++r) store(to[r], count, out + r * step);
        }
      };
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task * width, count = std::min(width, n.pixels - first);
        if (n.channels_last()) {
          for (int64_t p = 0; p < count; ++p) {
            for (int64_t o = 0; o < n.outputs; ++o) {
              pixels[p * terms + o] = static_cast<F>(gradient[(first + p) * n.outputs + o]);
            }
          }
          by_rows(0, count, [&](int64_t p, auto rows) DEOCC_BODY {
            for (int64_t c = 0; c < n.channels; c += kChunk) {
              some(rows, weights.data() + c, n.channels, pixels.data() + p * terms, 1, terms,
                   by_features + (first + p) * n.channels + c, n.channels, std::min(kChunk, n.channels - c));
            }
          });
        } else {
          for (int64_t o = 0; o < n.outputs; ++o) {
            const T* from = gradient + o * n.pixels + first;
            for (int64_t p = 0; p < count; ++p) pixels[o * width + p] = static_cast<F>(from[p]);
          }
          by_rows(0, n.channels, [&](int64_t c, auto rows) DEOCC_BODY {
            some(rows, pixels.data(), width, weights.data() + c, n.channels, 1, by_features + c * n.pixels + first,
                 n.pixels, count);
          });
        }
      }
    });
  };
  torch::stable::parallel_for(0, pieces(n.pixels, width), grain(width * n.channels), work);
}

template <class F>
std::vector<F> fold(const ProjectionSizes& n, const F* weight, const F* gate) {
  std::vector<F> folded(n.outputs * n.channels);
  for (int64_t o = 0; o < n.outputs; ++o) {
    for (int64_t c = 0; c < n.channels; ++c) folded[o * n.channels + c] = weight[o * n.channels + c] * gate[c];
  }
  return folded;
}

template <class T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* data_to(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

Tensor gated_projection(const Tensor& features_, const Tensor& gate_, const Tensor& weight_, const Tensor& bias_) {
  const ProjectionSizes n = projection_sizes("gated_projection", features_, weight_, bias_);
  check_small("gated_projection", "channel_gate", gate_, features_, {n.batch, n.channels});
  const Tensor features = torch::stable::contiguous(features_, n.format);
  const Tensor gate = torch::stable::contiguous(gate_), weight = torch::stable::contiguous(weight_);
  const Tensor bias = torch::stable::contiguous(bias_);
  const Tensor out = empty(features, {n.batch, n.outputs, n.height, n.width}, n.format);
  for_dtype(features.scalar_type(), "gated_projection", [&](auto zero) {
    using T = decltype(zero);
    using F = typename Compute<T>::type;
    for (int64_t sample = 0; sample < n.batch; ++sample) {
      const std::vector<F> folded = fold(n, data_of<F>(weight), data_of<F>(gate) + sample * n.channels);
      project(n, data_of<T>(features) + sample * n.channels * n.pixels, folded.data(), data_of<F>(bias),
              data_to<T>(out) + sample * n.outputs * n.pixels);
    }
  });
  return out;
}

std::tuple<Tensor, Tensor> gated_projection_products(const Tensor& gradient_, const Tensor& features_) {
  const ProjectionSizes n = product_sizes(gradient_, features_);
  const Tensor features = torch::stable::contiguous(features_, n.format);
  const Tensor gradient = torch::stable::contiguous(gradient_, n.format);
  const Tensor products = empty_small(features, {n.batch, n.outputs, n.channels});
  const Tensor sums = empty_small(features, {n.batch, n.outputs});
  for_dtype(features.scalar_type(), "gated_projection_products", [&](auto zero) {
    using T = decltype(zero);
    using F = typename Compute<T>::type;
    ProjectionSizes image = n;
    image.channels = n.outputs;
    for (int64_t sample = 0; sample < n.batch; ++sample) {
      const T* from = data_of<T>(gradient) + sample * n.outputs * n.pixels;
      multiply_pixels(n, from, data_of<T>(features) + sample * n.channels * n.pixels,
                      data_to<F>(products) + sample * n.outputs * n.channels);
      multiply_pixels(image, static_cast<const T*>(nullptr), from, data_to<F>(sums) + sample * n.outputs);
    }
  });
  return {products, sums};
}

Tensor gated_projection_features(const Tensor& gradient_, const Tensor& folded_, const Tensor& shift_,
                                 bool channels_last) {
  const ProjectionSizes n = feature_sizes(gradient_, folded_, shift_, channels_last);
  const Tensor gradient = torch::stable::contiguous(gradient_, n.format);
  const Tensor folded = torch::stable::contiguous(folded_), shift = torch::stable::contiguous(shift_);
  const Tensor by_features = empty(gradient, {n.batch, n.channels, n.height, n.width}, n.format);
  for_dtype(gradient.scalar_type(), "gated_projection_features", [&](auto zero) {
    using T = decltype(zero);
    using F = typename Compute<T>::type;
    for (int64_t sample = 0; sample < n.batch; ++sample) {
      spread_pixels(n, data_of<T>(gradient) + sample * n.outputs * n.pixels,
                    data_of<F>(folded) + sample * n.outputs * n.channels, data_of<F>(shift) + sample * n.channels,
                    data_to<T>(by_features) + sample * n.channels * n.pixels);
    }
  });
  return by_features;
}

// y = weight x + bias, weight (rows, columns).
template <class F>
void linear(const F* weight, const F* bias, const F* x, int64_t rows, int64_t columns, F* y) {
  for (int64_t r = 0; r < rows; ++r) {
    F sum = bias[r];
    for (int64_t c = 0; c < columns; ++c) sum += weight[r * columns + c] * x[c];
    y[r] = sum;
  }
}

std::tuple<Tensor, Tensor, Tensor> channel_attention_projection(const Tensor& features_, const Tensor& down_,
                                                                const Tensor& down_bias_, const Tensor& up_,
                                                                const Tensor& up_bias_, const Tensor& weight_,
                                                                const Tensor& bias_) {
  const ProjectionSizes n = projection_sizes("channel_attention_projection", features_, weight_, bias_);
  check_gate(features_, down_, down_bias_, up_, up_bias_);
  const Tensor features = torch::stable::contiguous(features_, n.format);
  const Tensor down = torch::stable::contiguous(down_), down_bias = torch::stable::contiguous(down_bias_);
  const Tensor up = torch::stable::contiguous(up_), up_bias = torch::stable::contiguous(up_bias_);
  const Tensor weight = torch::stable::contiguous(weight_), bias = torch::stable::contiguous(bias_);
  const Tensor out = empty(features, {n.batch, n.outputs, n.height, n.width}, n.format);
  const Tensor average = empty_small(features, {n.batch, n.channels});
  const Tensor gate = empty_small(features, {n.batch, n.channels});
  const int64_t width = down.size(0);
  for_dtype(features.scalar_type(), "channel_attention_projection", [&](auto zero) {
    using T = decltype(zero);
    using F = typename Compute<T>::type;
    std::vector<F> hidden(width);
    // Sample by sample, since the last cache may still hold what was averaged when it is projected.
    for (int64_t sample = 0; sample < n.batch; ++sample) {
      const T* from = data_of<T>(features) + sample * n.channels * n.pixels;
      F *z = data_to<F>(average) + sample * n.channels, *g = data_to<F>(gate) + sample * n.channels;
      multiply_pixels(n, static_cast<const T*>(nullptr), from, z);
      for (int64_t c = 0; c < n.channels; ++c) z[c] /= static_cast<F>(n.pixels);
      linear(data_of<F>(down), data_of<F>(down_bias), z, width, n.channels, hidden.data());
      for (F& value : hidden) value = value <= F(0) ? F(0) : value;
      linear(data_of<F>(up), data_of<F>(up_bias), hidden.data(), n.channels, width, g);
      for (int64_t c = 0; c < n.channels; ++c) g[c] = F(1) / (F(1) + std::exp(-g[c]));
      const std::vector<F> folded = fold(n, data_of<F>(weight), g);
      project(n, from, folded.data(), data_of<F>(bias), data_to<T>(out) + sample * n.outputs * n.pixels);
    }
  });
  return {out, average, gate};
}

// The averages of a row of windows of equal size; each window has `factor` columns and `pixels` pixels.
template <int factor, class T, class F>
DEOCC_INLINE void average_columns(const F* __restrict sums, int64_t windows, F pixels, T* __restrict out) {
  const F share = 1 / pixels;
  for (int64_t x = 0; x < windows; ++x) {
    F sum = sums[x * factor];
    for (int k = 1; k < factor; ++k) sum += sums[x * factor + k];
    out[x] = static_cast<T>(sum * share);
  }
}

// The same for windows of any size: columns[x] is the first column of window x, and the one after its last.
// step: elements from a pixel to its neighbour.
template <class T, class F>
DEOCC_INLINE void average_columns(const F* sums, const std::vector<std::pair<int64_t, int64_t>>& columns, int64_t step,
                                  F rows, T* out) {
  for (const auto& [begin, end] : columns) {
    const F pixels = rows * static_cast<F>(end - begin);
    for (int64_t c = 0; c < step; ++c) {
      F sum = 0;
      for (int64_t k = begin; k < end; ++k) sum += sums[k * step + c];
      *out++ = static_cast<T>(sum / pixels);
    }
  }
}

Tensor area_downsample(const Tensor& image_, int64_t height, int64_t width) {
  check_downsample(image_, height, width);
  const MemoryFormat format = format_of(image_);
  const Tensor image = torch::stable::contiguous(image_, format);
  const Tensor out = empty(image, {image.size(0), image.size(1), height, width}, format);
  if (out.numel() == 0) return out;
  const int64_t step = format == MemoryFormat::ChannelsLast ? image.size(1) : 1;
  const int64_t planes = image.size(0) * image.size(1) / step;
  const int64_t from_height = image.size(2), from_width = image.size(3), row = from_width * step;
  const int64_t factor = step == 1 && from_width % width == 0 ? from_width / width : 0;
  std::vector<std::pair<int64_t, int64_t>> columns;
  for (int64_t x = 0; x < width; ++x) {
    columns.emplace_back(x * from_width / width, ((x + 1) * from_width + width - 1) / width);
  }
  for_dtype(image.scalar_type(), "area_downsample", [&](auto zero) {
    using T = decltype(zero);
    using F = typename Compute<T>::type;
    const T* from = data_of<T>(image);
    T* out_data = data_to<T>(out);
    const auto work = [&](int64_t begin, int64_t end) {
      by_width<F>([&](auto vector) DEOCC_BODY {
        using V = decltype(vector);
        Reader<T, F> reader;
        std::vector<F> sums(row);
        const F one = 1;
        for (int64_t task = begin; task < end; ++task) {
          const int64_t plane = task / height, y = task % height;
          const int64_t top = y * from_height / height, bottom = ((y + 1) * from_height + height - 1) / height;
          std::fill(sums.begin(), sums.end(), F(0));
          for (int64_t at = top; at < bottom; ++at) {  // one by one: so everything is read in the order it lies in
            for (int64_t k = 0; k < row; k += kChunk) {
              const int64_t count = std::min(kChunk, row - k);
              const T* here = from + (plane * from_height + at) * row + k;
              expect(here + kAhead / sizeof(T), count);
              reader.template read<1>(here, row, count);
              accumulate<V, 1, 1>(reader.row, &one, 0, 0, sums.data() + k, 0, count);
            }
          }
          T* to = out_data + task * width * step;
          const F rows = static_cast<F>(bottom - top);
          switch (factor) {
            case 1:
              average_columns<1>(sums.data(), width, rows, to);
              break;
            case 2:
              average_columns<2>(sums.data(), width, 2 * rows, to);
              break;
            case 4:
              average_columns<4>(sums.data(), width, 4 * rows, to);
              break;
            case 8:
              average_columns<8>(sums.data(), width, 8 * rows, to);
              break;
            default:
              average_columns(sums.data(), columns, step, rows, to);
          }
        }
      });
    };
    torch::stable::parallel_for(0, planes * height, grain(row * pieces(from_height, height)), work);
  });
  return out;
}

// sigmoid(x) and sigmoid(-x), each as precise as if it had been computed alone.
template <class V>
DEOCC_INLINE std::pair<typename V::type, typename V::type> sigmoids(const typename V::type& x) {
  using Vec = typename V::type;
  const Vec magnitude = x < 0 ? -x : x;
  const Vec e = magnitude > 87 ? Vec{} : exponential<V>(-magnitude);
  const Vec large = 1 / (1 + e), small = e * large;
  return {x < 0 ? small : large, x < 0 ? large : small};
}

template <class V, class F>
DEOCC_INLINE void blend(const F* logits, const F* restored, const F* known, F* out) {
  const auto [alpha, rest] = sigmoids<V>(V::load(logits));
  V::store(out, alpha * V::load(restored) + rest * V::load(known));
}

template <class V, class F>
DEOCC_INLINE void blend_backward(const F* gradient, const F* logits, const F* restored, const F* known, F* by_logits,
                                 F* by_restored, F* by_known) {
  const auto [alpha, rest] = sigmoids<V>(V::load(logits));
  const typename V::type upstream = V::load(gradient);
  V::store(by_logits, upstream * (V::load(restored) - V::load(known)) * alpha * rest);
  V::store(by_restored, alpha * upstream);
  V::store(by_known, rest * upstream);
}

// Calls body(vector, inputs, outputs) for every vector of these tensors' elements, which lie in the same order. What
// does not fill a vector at the end, and what must be converted, passes through buffers.
template <class T, int inputs, int outputs, class Body>
void for_vectors(const T* const (&from)[inputs], T* const (&to)[outputs], int64_t total, const Body& body) {
  using F = typename Compute<T>::type;
  constexpr int64_t kWidest = 64 / sizeof(F);
  const auto work = [&](int64_t begin, int64_t end) {
    by_width<F>([&](auto vector) DEOCC_BODY {
      using V = decltype(vector);
      F read[inputs][kWidest] = {}, written[outputs][kWidest];
      const F* in[inputs];
      F* out[outputs];
      int64_t k = begin;
      if constexpr (std::is_same_v<T, F>) {
        for (; k + V::lanes <= end; k += V::lanes) {
          for (int i = 0; i < inputs; ++i) in[i] = from[i] + k;
          for (int i = 0; i < outputs; ++i) out[i] = to[i] + k;
          body(vector, in, out);
        }
      }
      for (int i = 0; i < inputs; ++i) in[i] = read[i];
      for (int i = 0; i < outputs; ++i) out[i] = written[i];
      for (; k < end; k += V::lanes) {
        const int64_t count = std::min<int64_t>(V::lanes, end - k);
        for (int i = 0; i < inputs; ++i) widened<T, F>(from[i] + k, count, read[i]);
        if constexpr (std::is_same_v<T, F>) {
          for (int i = 0; i < inputs; ++i) std::copy_n(from[i] + k, count, read[i]);
        }
        body(vector, in, out);
        for (int i = 0; i < outputs; ++i) store(written[i], count, to[i] + k);
      }
    });
  };
  torch::stable::parallel_for(0, total, kPerThread, work);
}

Tensor attention_blend(const Tensor& logits_, const Tensor& restored_, const Tensor& known_) {
  check_blend(logits_, {&restored_, &known_});
  const MemoryFormat format = format_of(restored_);
  const Tensor logits = torch::stable::contiguous(logits_, format);
  const Tensor restored = torch::stable::contiguous(restored_, format);
  const Tensor known = torch::stable::contiguous(known_, format);
  const Tensor out = empty(logits, logits.sizes(), format);
  for_dtype(logits.scalar_type(), "attention_blend", [&](auto zero) {
    using T = decltype(zero);
    for_vectors<T, 3, 1>({data_of<T>(logits), data_of<T>(restored), data_of<T>(known)}, {data_to<T>(out)},
                         out.numel(), [](auto vector, const auto* in, const auto* to) DEOCC_BODY {
                           blend<decltype(vector)>(in[0], in[1], in[2], to[0]);
                         });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> attention_blend_backward(const Tensor& gradient_, const Tensor& logits_,
                                                            const Tensor& restored_, const Tensor& known_) {
  check_blend(logits_, {&gradient_, &restored_, &known_});
  const MemoryFormat format = format_of(restored_);
  const Tensor gradient = torch::stable::contiguous(gradient_, format);
  const Tensor logits = torch::stable::contiguous(logits_, format);
  const Tensor restored = torch::stable::contiguous(restored_, format);
  const Tensor known = torch::stable::contiguous(known_, format);
  const Tensor by_logits = empty(logits, logits.sizes(), format), by_restored = empty(logits, logits.sizes(), format);
  const Tensor by_known = empty(logits, logits.sizes(), format);
  for_dtype(logits.scalar_type(), "attention_blend_backward", [&](auto zero) {
    using T = decltype(zero);
    for_vectors<T, 4, 3>(
        {data_of<T>(gradient), data_of<T>(logits), data_of<T>(restored), data_of<T>(known)},
        {data_to<T>(by_logits), data_to<T>(by_restored), data_to<T>(by_known)}, logits.numel(),
        [](auto vector, const auto* in, const auto* to) DEOCC_BODY {
          blend_backward<decltype(vector)>(in[0], in[1], in[2], in[3], to[0], to[1], to[2]);
        });
  });
  return {by_logits, by_restored, by_known};
}

}  // namespace
}  // namespace deocc

STABLE_TORCH_LIBRARY_IMPL(deocc, CPU, m) {
  m.impl("gated_projection", TORCH_BOX(&deocc::gated_projection));
  m.impl("gated_projection_products", TORCH_BOX(&deocc::gated_projection_products));
  m.impl("gated_projection_features", TORCH_BOX(&deocc::gated_projection_features));
  m.impl("channel_attention_projection", TORCH_BOX(&deocc::channel_attention_projection));
  m.impl("area_downsample", TORCH_BOX(&deocc::area_downsample));
  m.impl("attention_blend", TORCH_BOX(&deocc::attention_blend));
  m.impl("attention_blend_backward", TORCH_BOX(&deocc::attention_blend_backward));
}
