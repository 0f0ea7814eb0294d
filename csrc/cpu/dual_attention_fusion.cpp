// Features are a matrix with one long side. Its rows, which lie in memory one after the other, are channels of pixels
// or, channels last, pixels of channels; so each of the three products below serves both orders, in changed roles.
// All of them are bound by memory: every element of the features is read or written once, four rows at a time, which
// the processor can follow.
#include "../dual_attention_fusion.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>
#include <vector>

#include "convert.h"
#include "exponential.h"

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

// Elements in the type that they are computed in: where they are, or converted into the buffer.
template <class T, class F>
const F* widened(const T* from, int64_t count, F* buffer) {
  if constexpr (std::is_same_v<T, F>) {
    return from;
  } else {
    by_width<F>([&](auto vector) DEOCC_BODY {
      using V = decltype(vector);
      int64_t k = 0;
      for (; k + V::lanes <= count; k += V::lanes) V::store(buffer + k, load_as<V>(from + k));
      for (; k < count; ++k) buffer[k] = static_cast<F>(from[k]);
    });
    return buffer;
  }
}

template <class T, class F>
void store(const F* from, int64_t count, T* to) {
  by_width<F>([&](auto vector) DEOCC_BODY {
    using V = decltype(vector);
    int64_t k = 0;
    for (; k + V::lanes <= count; k += V::lanes) store_as<V>(to + k, V::load(from + k));
    for (; k < count; ++k) to[k] = static_cast<T>(from[k]);
  });
}

// sums[o][k] += sum over r of factors[o][r] * rows[r][k]; rows begin at row + r * step, factors[o] at
// factors + o * factor_step, their elements are factor_row apart; sums[o] begin at sums + o * sum_step.
template <class V, int outputs, int rows, class T, class F>
DEOCC_INLINE void accumulate(const T* row, int64_t step, const F* factors, int64_t factor_step, int64_t factor_row,
                             F* sums, int64_t sum_step, int64_t count) {
  using Vec = typename V::type;
  F factor[outputs][rows];
  for (int o = 0; o < outputs; ++o) {
    for (int r = 0; r < rows; ++r) factor[o][r] = factors[o * factor_step + r * factor_row];
  }
  int64_t k = 0;
  for (; k + V::lanes <= count; k += V::lanes) {
    Vec value[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) value[r] = load_as<V>(row + r * step + k);
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
      for (int r = 0; r < rows; ++r) sum += factor[o][r] * static_cast<F>(row[r * step + k]);
      sums[o * sum_step + k] = sum;
    }
  }
}

// sums[o][r] += sum over k of x[o][k] * rows[r][k]; x[o] begin at x + o * x_step, rows as above.
template <class V, int outputs, int rows, class X, class T, class F>
DEOCC_INLINE void dots(const X* x, int64_t x_step, const T* row, int64_t step, int64_t count, F* sums,
                       int64_t sum_step, int64_t sum_row) {
  using Vec = typename V::type;
  Vec sum[outputs][rows] = {};
  int64_t k = 0;
  for (; k + V::lanes <= count; k += V::lanes) {
    Vec value[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) value[r] = load_as<V>(row + r * step + k);
#pragma GCC unroll 4
    for (int o = 0; o < outputs; ++o) {
      const Vec factor = load_as<V>(x + o * x_step + k);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) sum[o][r] += factor * value[r];
    }
  }
#pragma GCC unroll 4
  for (int o = 0; o < outputs; ++o) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      F total = sum_of<V>(sum[o][r]);
      for (int64_t rest = k; rest < count; ++rest) {
        total += static_cast<F>(x[o * x_step + rest]) * static_cast<F>(row[r * step + rest]);
      }
      sums[o * sum_step + r * sum_row] += total;
    }
  }
}

// rows[r][k] = sum over t of factors[t][r] * x[t][k]; x[t] begin at x + t * x_step, rows and factors as above.
template <class V, int rows, class T, class F>
DEOCC_INLINE void spread(const F* x, int64_t x_step, const F* factors, int64_t factor_step, int64_t factor_row,
                         int64_t terms, T* row, int64_t step, int64_t count) {
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
    for (int r = 0; r < rows; ++r) store_as<V>(row + r * step + k, sum[r]);
  }
  for (; k < count; ++k) {
    for (int r = 0; r < rows; ++r) {
      F sum = 0;
      for (int64_t t = 0; t < terms; ++t) sum += factors[t * factor_step + r * factor_row] * x[t * x_step + k];
      row[r * step + k] = static_cast<T>(sum);
    }
  }
}

// ---- The same on any number of rows and up to kOutputs outputs. These alone choose vectors: it is not compiled for each
// of them what calls them. ----

// Groups of rows, then the rest one by one: body(first row, std::integral_constant<int, rows>()).
template <int group, class Body>
DEOCC_INLINE void by_rows(int64_t rows, const Body& body) {
  int64_t r = 0;
  for (; r + group <= rows; r += group) body(r, std::integral_constant<int, group>());
  for (; r < rows; ++r) body(r, std::integral_constant<int, 1>());
}

template <class T, class F>
void add_rows(const T* from, int64_t step, int64_t rows, int64_t count, int64_t outputs_, const F* factors,
              int64_t factor_step, int64_t factor_row, F* sums, int64_t sum_step) {
  by_width<F>([&](auto vector) DEOCC_BODY {
    with_count(outputs_, [&](auto outputs) DEOCC_BODY {
      by_rows<kRows>(rows, [&](int64_t r, auto group) DEOCC_BODY {
        const T* row = from + r * step;
        if (step > count) {
          for (int i = 0; i < group && r + group + i < rows; ++i) expect(row + (group + i) * step, count);
        }
        accumulate<decltype(vector), outputs.value, group.value>(row, step, factors + r * factor_row, factor_step,
                                                                 factor_row, sums, sum_step, count);
      });
    });
  });
}

template <class X, class T, class F>
void multiply_rows(const X* x, int64_t x_step, const T* from, int64_t step, int64_t rows, int64_t count,
                   int64_t outputs_, F* sums, int64_t sum_step, int64_t sum_row) {
  by_width<F>([&](auto vector) DEOCC_BODY {
    using V = decltype(vector);
    constexpr int most = V::registers == 32 ? kRows : kRows / 2;
    with_count(outputs_, [&](auto outputs) DEOCC_BODY {
      by_rows<most>(rows, [&](int64_t r, auto group) DEOCC_BODY {
        dots<V, outputs.value, group.value>(x, x_step, from + r * step, step, count, sums + r * sum_row, sum_step,
                                            sum_row);
      });
    });
  });
}

template <class T, class F>
void write_rows(const F* x, int64_t x_step, const F* factors, int64_t factor_step, int64_t factor_row, int64_t terms,
                T* to, int64_t step, int64_t rows, int64_t count) {
  by_width<F>([&](auto vector) DEOCC_BODY {
    by_rows<kRows>(rows, [&](int64_t r, auto group) DEOCC_BODY {
      spread<decltype(vector), group.value>(x, x_step, factors + r * factor_row, factor_step, factor_row, terms,
                                            to + r * step, step, count);
    });
  });
}

// ---- The products ----

// out[n] = bias + folded features[n] for one sample. folded: (O, C).
template <class T, class F>
void project(const ProjectionSizes& n, const T* features, const F* folded, const F* bias, T* out) {
  const int64_t width = n.channels_last() ? std::clamp<int64_t>(4 * kChunk / n.channels, kRows, kChunk) : kChunk;
  const auto work = [&](int64_t begin, int64_t end) {
    std::vector<F> sums(kOutputs * kChunk);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * width, count = std::min(width, n.pixels - first);
      for (int64_t o = 0; o < n.outputs; o += kOutputs) {
        const int64_t outputs = std::min<int64_t>(kOutputs, n.outputs - o);
        const F* factors = folded + o * n.channels;
        if (n.channels_last()) {
          F* sum = sums.data();
          for (int64_t p = 0; p < count; ++p) {
            for (int64_t i = 0; i < outputs; ++i) *sum++ = bias[o + i];
          }
          for (int64_t c = 0; c < n.channels; c += kChunk) {
            multiply_rows(factors + c, n.channels, features + first * n.channels + c, n.channels, count,
                          std::min(kChunk, n.channels - c), outputs, sums.data(), 1, outputs);
          }
          for (int64_t p = 0; p < count; ++p) {
            for (int64_t i = 0; i < outputs; ++i) {
              out[(first + p) * n.outputs + o + i] = static_cast<T>(sums[p * outputs + i]);
            }
          }
        } else {
          for (int64_t i = 0; i < outputs; ++i) std::fill_n(sums.data() + i * kChunk, count, bias[o + i]);
          add_rows(features + first, n.pixels, n.channels, count, outputs, factors, n.channels, 1, sums.data(), kChunk);
          for (int64_t i = 0; i < outputs; ++i) {
            store(sums.data() + i * kChunk, count, out + (o + i) * n.pixels + first);
          }
        }
      }
    }
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
      const std::vector<F> ones(gradient ? 0 : kChunk, F(1));
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task * kRows, rows = std::min<int64_t>(kRows, n.channels - first);
        for (int64_t o = 0; o < outputs_; ++o) std::fill_n(products + o * n.channels + first, rows, F(0));
        for (int64_t p = 0; p < n.pixels; p += kChunk) {
          const int64_t count = std::min(kChunk, n.pixels - p);
          const T* const from = features + first * n.pixels + p;
          for (int64_t o = 0; o < outputs_; o += kOutputs) {
            const int64_t outputs = std::min<int64_t>(kOutputs, outputs_ - o);
            F* const to = products + o * n.channels + first;
            if (gradient) {
              multiply_rows(gradient + o * n.pixels + p, n.pixels, from, n.pixels, rows, count, outputs, to,
                            n.channels, 1);
            } else {
              multiply_rows(ones.data(), 0, from, n.pixels, rows, count, outputs, to, n.channels, 1);
            }
          }
        }
      }
    };
    torch::stable::parallel_for(0, pieces(n.channels, kRows), grain(kRows * n.pixels), work);
    return;
  }
  const int64_t segments = pieces(n.pixels, kSegment), size = outputs_ * n.channels;
  const int64_t block = std::clamp<int64_t>(4 * kChunk / n.channels, kRows, kChunk);  // pixels that stay in the cache
  std::vector<F> parts(segments * size);
  const auto work = [&](int64_t begin, int64_t end) {
    std::vector<F> buffer(block * outputs_, F(1));
    for (int64_t segment = begin; segment < end; ++segment) {
      const int64_t last = std::min((segment + 1) * kSegment, n.pixels);
      F* sums = parts.data() + segment * size;
      for (int64_t p = segment * kSegment; p < last; p += block) {
        const int64_t rows = std::min(block, last - p);
        const F* factors = buffer.data();
        if (gradient) factors = widened(gradient + p * outputs_, rows * outputs_, buffer.data());
        for (int64_t o = 0; o < outputs_; o += kOutputs) {
          for (int64_t c = 0; c < n.channels; c += kChunk) {
            add_rows(features + p * n.channels + c, n.channels, rows, std::min(kChunk, n.channels - c),
                     std::min<int64_t>(kOutputs, outputs_ - o), factors + o, 1, outputs_, sums + o * n.channels + c,
                     n.channels);
          }
        }
      }
    }
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
    std::vector<F> pixels(terms * width, F(1));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * width, count = std::min(width, n.pixels - first);
      if (n.channels_last()) {
        for (int64_t p = 0; p < count; ++p) {
          for (int64_t o = 0; o < n.outputs; ++o) {
            pixels[p * terms + o] = static_cast<F>(gradient[(first + p) * n.outputs + o]);
          }
        }
        for (int64_t c = 0; c < n.channels; c += kChunk) {
          write_rows(weights.data() + c, n.channels, pixels.data(), 1, terms, terms,
                     by_features + first * n.channels + c, n.channels, count, std::min(kChunk, n.channels - c));
        }
      } else {
        for (int64_t o = 0; o < n.outputs; ++o) {
          F* const to = pixels.data() + o * width;
          const F* const from = widened(gradient + o * n.pixels + first, count, to);
          if (from != to) std::copy_n(from, count, to);
        }
        write_rows(pixels.data(), width, weights.data(), n.channels, 1, terms, by_features + first, n.pixels,
                   n.channels, count);
      }
    }
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
template <int factor, class F>
DEOCC_INLINE void average_columns(const F* __restrict sums, int64_t windows, F pixels, F* __restrict out) {
  const F share = 1 / pixels;
  for (int64_t x = 0; x < windows; ++x) {
    F sum = sums[x * factor];
    for (int k = 1; k < factor; ++k) sum += sums[x * factor + k];
    out[x] = sum * share;
  }
}

// The same for windows of any size: columns[x] is the first column of window x, and the one after its last.
// step: elements from a pixel to its neighbour.
template <class F>
DEOCC_INLINE void average_columns(const F* sums, const std::vector<std::pair<int64_t, int64_t>>& columns, int64_t step,
                                  F rows, F* out) {
  for (const auto& [begin, end] : columns) {
    const F pixels = rows * static_cast<F>(end - begin);
    for (int64_t c = 0; c < step; ++c) {
      F sum = 0;
      for (int64_t k = begin; k < end; ++k) sum += sums[k * step + c];
      *out++ = sum / pixels;
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
      std::vector<F> sums(row), averages(std::is_same_v<T, F> ? 0 : width * step);
      by_width<F>([&](auto vector) DEOCC_BODY {
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
              accumulate<decltype(vector), 1, 1>(here, row, &one, 0, 0, sums.data() + k, 0, count);
            }
          }
          T* const to = out_data + task * width * step;
          F* averaged;
          if constexpr (std::is_same_v<T, F>) averaged = to;
          if constexpr (!std::is_same_v<T, F>) averaged = averages.data();
          const F rows = static_cast<F>(bottom - top);
          switch (factor) {
            case 1:
              average_columns<1>(sums.data(), width, rows, averaged);
              break;
            case 2:
              average_columns<2>(sums.data(), width, 2 * rows, averaged);
              break;
            case 4:
              average_columns<4>(sums.data(), width, 4 * rows, averaged);
              break;
            case 8:
              average_columns<8>(sums.data(), width, 8 * rows, averaged);
              break;
            default:
              average_columns(sums.data(), columns, step, rows, averaged);
          }
          if constexpr (!std::is_same_v<T, F>) store(averaged, width * step, to);
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

// Calls body(vector, inputs, outputs) with a vector of every input, for one of every output: the elements of all these
// tensors lie in the same order. What does not fill a vector at the end passes through buffers.
template <class T, int inputs, int outputs, class Body>
void for_vectors(const T* const (&from)[inputs], T* const (&to)[outputs], int64_t total, const Body& body) {
  using F = typename Compute<T>::type;
  const auto work = [&](int64_t begin, int64_t end) {
    by_width<F>([&](auto vector) DEOCC_BODY {
      using V = decltype(vector);
      const auto pass = [&](const T* const* read, T* const* write, int64_t k) DEOCC_BODY {
        typename V::type in[inputs], out[outputs];
        for (int i = 0; i < inputs; ++i) in[i] = load_as<V>(read[i] + k);
        body(vector, in, out);
        for (int i = 0; i < outputs; ++i) store_as<V>(write[i] + k, out[i]);
      };
      int64_t k = begin;
      for (; k + V::lanes <= end; k += V::lanes) pass(from, to, k);
      if (k == end) return;
      T last[inputs][V::lanes] = {}, written[outputs][V::lanes];
      const T* read[inputs];
      T* write[outputs];
      for (int i = 0; i < inputs; ++i) read[i] = std::copy(from[i] + k, from[i] + end, last[i]) - (end - k);
      for (int i = 0; i < outputs; ++i) write[i] = written[i];
      pass(read, write, 0);
      for (int i = 0; i < outputs; ++i) std::copy_n(written[i], end - k, to[i] + k);
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
                         out.numel(), [](auto vector, const auto& in, auto& to) DEOCC_BODY {
                           const auto& [logits, restored, known] = in;
                           const auto [alpha, rest] = sigmoids<decltype(vector)>(logits);
                           to[0] = alpha * restored + rest * known;
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
        [](auto vector, const auto& in, auto& to) DEOCC_BODY {
          const auto& [upstream, logits, restored, known] = in;
          const auto [alpha, rest] = sigmoids<decltype(vector)>(logits);
          to[0] = upstream * (restored - known) * alpha * rest;
          to[1] = alpha * upstream;
          to[2] = rest * upstream;
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
