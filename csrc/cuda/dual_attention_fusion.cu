// CUDA and not Triton: every kernel waits for memory alone, and one launch line serves both orders of the elements. Not
// yet measured on a GPU.
#include "../dual_attention_fusion.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "launch.h"

namespace deocc {
namespace {

constexpr int kOutputs = 4;  // outputs that a thread sums up together

// Where an element of a tensor with `channels` channels lies: `channel` and `pixel` are the distances between two
// channels of a pixel and between two pixels.
struct Steps {
  int64_t sample, channel, pixel;

  Steps(const ProjectionSizes& n, int64_t channels)
      : sample(channels * n.pixels),
        channel(n.channels_last() ? 1 : n.pixels),
        pixel(n.channels_last() ? channels : 1) {}

  __device__ int64_t at(int64_t n, int64_t c, int64_t p) const { return n * sample + c * channel + p * pixel; }
};

template <class F>
__device__ F sigmoid(F x) {
  return F(1) / (F(1) + exp(-x));
}

// The sum of `value` over the threads of a block, in thread 0; in the same order at every call.
template <class F>
__device__ F block_sum(F value) {
  __shared__ F shared[kThreads];
  __syncthreads();
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  return shared[0];
}

// One thread for a pixel: it reads its features once for each four outputs.
template <class T, class F>
__global__ void project(const T* __restrict__ features, const F* __restrict__ gate, const F* __restrict__ weight,
                        const F* __restrict__ bias, T* __restrict__ out, ProjectionSizes n, Steps from, Steps to) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < n.batch * n.pixels; index += stride) {
    const int64_t sample = index / n.pixels, p = index % n.pixels;
    for (int64_t o = 0; o < n.outputs; o += kOutputs) {
      F sum[kOutputs];
      for (int i = 0; i < kOutputs; ++i) sum[i] = o + i < n.outputs ? bias[o + i] : F(0);
      for (int64_t c = 0; c < n.channels; ++c) {
        const F value = static_cast<F>(features[from.at(sample, c, p)]) * gate[sample * n.channels + c];
        for (int i = 0; i < kOutputs; ++i) {
          if (o + i < n.outputs) sum[i] += weight[(o + i) * n.channels + c] * value;
        }
      }
      for (int i = 0; i < kOutputs; ++i) {
        if (o + i < n.outputs) out[to.at(sample, o + i, p)] = static_cast<T>(sum[i]);
      }
    }
  }
}

// One block for a channel of a sample. Without a gradient it is 1 and there is one output.
template <class T, class F>
__global__ void multiply_pixels(const T* __restrict__ gradient, const T* __restrict__ features, F* __restrict__ products,
                                ProjectionSizes n, Steps image, Steps from, F scale) {
  const int64_t sample = blockIdx.x / n.channels, c = blockIdx.x % n.channels;
  const int64_t outputs = gradient ? n.outputs : 1;
  for (int64_t o = 0; o < outputs; o += kOutputs) {
    F sum[kOutputs] = {};
    for (int64_t p = threadIdx.x; p < n.pixels; p += blockDim.x) {
      const F value = static_cast<F>(features[from.at(sample, c, p)]);
      for (int i = 0; i < kOutputs; ++i) {
        if (o + i < outputs) sum[i] += gradient ? static_cast<F>(gradient[image.at(sample, o + i, p)]) * value : value;
      }
    }
    for (int i = 0; i < kOutputs; ++i) {
      const F total = block_sum(sum[i]);
      if (threadIdx.x == 0 && o + i < outputs) products[(sample * outputs + o + i) * n.channels + c] = total * scale;
    }
  }
}

// One thread for an element of the result.
template <class T, class F>
__global__ void spread_pixels(const T* __restrict__ gradient, const F* __restrict__ folded, const F* __restrict__ shift,
                              T* __restrict__ by_features, ProjectionSizes n, Steps image, Steps to) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x, total = n.batch * n.channels * n.pixels;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < total; index += stride) {
    // Neighbouring threads write neighbouring elements.
    const int64_t sample = index / (n.channels * n.pixels), rest = index % (n.channels * n.pixels);
    const bool channels_last = n.format == MemoryFormat::ChannelsLast;
    const int64_t c = channels_last ? rest % n.channels : rest / n.pixels;
    const int64_t p = channels_last ? rest / n.channels : rest % n.pixels;
    F sum = shift[sample * n.channels + c];
    for (int64_t o = 0; o < n.outputs; ++o) {
      sum += folded[(sample * n.outputs + o) * n.channels + c] * static_cast<F>(gradient[image.at(sample, o, p)]);
    }
    by_features[to.at(sample, c, p)] = static_cast<T>(sum);
  }
}

// One block for a sample. hidden: (N, R), what is between the two layers.
template <class F>
__global__ void gates(const F* __restrict__ average, const F* __restrict__ down, const F* __restrict__ down_bias,
                      const F* __restrict__ up, const F* __restrict__ up_bias, F* __restrict__ hidden_,
                      F* __restrict__ gate, int64_t channels, int64_t width) {
  F* hidden = hidden_ + blockIdx.x * width;
  const F* z = average + blockIdx.x * channels;
  for (int64_t r = threadIdx.x; r < width; r += blockDim.x) {
    F sum = down_bias[r];
    for (int64_t c = 0; c < channels; ++c) sum += down[r * channels + c] * z[c];
    hidden[r] = sum <= F(0) ? F(0) : sum;
  }
  __syncthreads();
  for (int64_t c = threadIdx.x; c < channels; c += blockDim.x) {
    F sum = up_bias[c];
    for (int64_t r = 0; r < width; ++r) sum += up[c * width + r] * hidden[r];
    gate[blockIdx.x * channels + c] = sigmoid(sum);
  }
}

// One thread for an element of the result. inner: channels of a pixel that lie together, 1 unless channels last.
template <class T, class F>
__global__ void downsample(const T* __restrict__ image, T* __restrict__ out, int64_t total, int64_t inner,
                           int64_t from_height, int64_t from_width, int64_t height, int64_t width) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < total; index += stride) {
    const int64_t c = index % inner, x = index / inner % width, y = index / inner / width % height;
    const int64_t plane = index / inner / width / height;  // a sample, or a channel of one
    const int64_t top = y * from_height / height, bottom = ((y + 1) * from_height + height - 1) / height;
    const int64_t left = x * from_width / width, right = ((x + 1) * from_width + width - 1) / width;
    F sum = 0;
    for (int64_t row = top; row < bottom; ++row) {
      for (int64_t column = left; column < right; ++column) {
        sum += static_cast<F>(image[((plane * from_height + row) * from_width + column) * inner + c]);
      }
    }
    out[index] = static_cast<T>(sum / static_cast<F>((bottom - top) * (right - left)));
  }
}

template <class T, class F>
__global__ void blend(const T* __restrict__ logits, const T* __restrict__ restored, const T* __restrict__ known,
                      T* __restrict__ out, int64_t total) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < total; index += stride) {
    const F x = static_cast<F>(logits[index]);
    out[index] = static_cast<T>(sigmoid(x) * static_cast<F>(restored[index]) +
                                sigmoid(-x) * static_cast<F>(known[index]));
  }
}

template <class T, class F>
__global__ void blend_backward(const T* __restrict__ gradient, const T* __restrict__ logits,
                               const T* __restrict__ restored, const T* __restrict__ known, T* __restrict__ by_logits,
                               T* __restrict__ by_restored, T* __restrict__ by_known, int64_t total) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < total; index += stride) {
    const F x = static_cast<F>(logits[index]), g = static_cast<F>(gradient[index]);
    const F alpha = sigmoid(x), rest = sigmoid(-x);
    const F difference = static_cast<F>(restored[index]) - static_cast<F>(known[index]);
    by_logits[index] = static_cast<T>(g * difference * alpha * rest);
    by_restored[index] = static_cast<T>(alpha * g);
    by_known[index] = static_cast<T>(rest * g);
  }
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
  const torch::stable::accelerator::DeviceGuard guard(features_.get_device_index());
  const Tensor features = torch::stable::contiguous(features_, n.format);
  const Tensor gate = torch::stable::contiguous(gate_), weight = torch::stable::contiguous(weight_);
  const Tensor bias = torch::stable::contiguous(bias_);
  const Tensor out = empty(features, {n.batch, n.outputs, n.height, n.width}, n.format);
  if (out.numel() == 0) return out;
  for_dtype(features.scalar_type(), "gated_projection", [&](auto zero) {
    using T = decltype(zero);
    using F = typename Compute<T>::type;
    project<T, F><<<blocks_for(n.batch * n.pixels), kThreads, 0, current_stream(features)>>>(
        data_of<T>(features), data_of<F>(gate), data_of<F>(weight), data_of<F>(bias), data_to<T>(out), n,
        Steps(n, n.channels), Steps(n, n.outputs));
    check_launch("gated_projection");
  });
  return out;
}

std::tuple<Tensor, Tensor> gated_projection_products(const Tensor& gradient_, const Tensor& features_) {
  const ProjectionSizes n = product_sizes(gradient_, features_);
  const torch::stable::accelerator::DeviceGuard guard(features_.get_device_index());
  const Tensor features = torch::stable::contiguous(features_, n.format);
  const Tensor gradient = torch::stable::contiguous(gradient_, n.format);
  const Tensor products = empty_small(features, {n.batch, n.outputs, n.channels});
  const Tensor sums = empty_small(features, {n.batch, n.outputs});
  if (n.batch == 0) return {products, sums};
  for_dtype(features.scalar_type(), "gated_projection_products", [&](auto zero) {
    using T = decltype(zero);
    using F = typename Compute<T>::type;
    ProjectionSizes image = n;
    image.channels = n.outputs;
    const Steps steps(n, n.outputs);
    const T* none = nullptr;
    multiply_pixels<T, F><<<n.batch * n.channels, kThreads, 0, current_stream(features)>>>(
        data_of<T>(gradient), data_of<T>(features), data_to<F>(products), n, steps, Steps(n, n.channels), F(1));
    multiply_pixels<T, F><<<n.batch * n.outputs, kThreads, 0, current_stream(features)>>>(
        none, data_of<T>(gradient), data_to<F>(sums), image, steps, steps, F(1));
    check_launch("gated_projection_products");
  });
  return {products, sums};
}

Tensor gated_projection_features(const Tensor& gradient_, const Tensor& folded_, const Tensor& shift_,
                                 bool channels_last) {
  const ProjectionSizes n = feature_sizes(gradient_, folded_, shift_, channels_last);
  const torch::stable::accelerator::DeviceGuard guard(gradient_.get_device_index());
  const Tensor gradient = torch::stable::contiguous(gradient_, n.format);
  const Tensor folded = torch::stable::contiguous(folded_), shift = torch::stable::contiguous(shift_);
  const Tensor by_features = empty(gradient, {n.batch, n.channels, n.height, n.width}, n.format);
  if (by_features.numel() == 0) return by_features;
  for_dtype(gradient.scalar_type(), "gated_projection_features", [&](auto zero) {
    using T = decltype(zero);
    using F = typename Compute<T>::type;
    spread_pixels<T, F><<<blocks_for(by_features.numel()), kThreads, 0, current_stream(gradient)>>>(
        data_of<T>(gradient), data_of<F>(folded), data_of<F>(shift), data_to<T>(by_features), n, Steps(n, n.outputs),
        Steps(n, n.channels));
    check_launch("gated_projection_features");
  });
  return by_features;
}

std::tuple<Tensor, Tensor, Tensor> channel_attention_projection(const Tensor& features_, const Tensor& down_,
                                                                const Tensor& down_bias_, const Tensor& up_,
                                                                const Tensor& up_bias_, const Tensor& weight_,
                                                                const Tensor& bias_) {
  const ProjectionSizes n = projection_sizes("channel_attention_projection", features_, weight_, bias_);
  check_gate(features_, down_, down_bias_, up_, up_bias_);
  const torch::stable::accelerator::DeviceGuard guard(features_.get_device_index());
  const Tensor features = torch::stable::contiguous(features_, n.format);
  const Tensor down = torch::stable::contiguous(down_), down_bias = torch::stable::contiguous(down_bias_);
  const Tensor up = torch::stable::contiguous(up_), up_bias = torch::stable::contiguous(up_bias_);
  const Tensor average = empty_small(features, {n.batch, n.channels});
  const Tensor gate = empty_small(features, {n.batch, n.channels});
  const Tensor hidden = empty_small(features, {n.batch, down.size(0)});
  if (n.batch > 0) {
    for_dtype(features.scalar_type(), "channel_attention_projection", [&](auto zero) {
      using T = decltype(zero);
      using F = typename Compute<T>::type;
      const Steps steps(n, n.channels);
      const T* none = nullptr;
      multiply_pixels<T, F><<<n.batch * n.channels, kThreads, 0, current_stream(features)>>>(
          none, data_of<T>(features), data_to<F>(average), n, steps, steps, F(1) / static_cast<F>(n.pixels));
      gates<F><<<n.batch, kThreads, 0, current_stream(features)>>>(
          data_of<F>(average), data_of<F>(down), data_of<F>(down_bias), data_of<F>(up), data_of<F>(up_bias),
          data_to<F>(hidden), data_to<F>(gate), n.channels, down.size(0));
      check_launch("channel_attention_projection");
    });
  }
  return {gated_projection(features, gate, weight_, bias_), average, gate};
}

Tensor area_downsample(const Tensor& image_, int64_t height, int64_t width) {
  check_downsample(image_, height, width);
  const torch::stable::accelerator::DeviceGuard guard(image_.get_device_index());
  const MemoryFormat format = format_of(image_);
  const Tensor image = torch::stable::contiguous(image_, format);
  const Tensor out = empty(image, {image.size(0), image.size(1), height, width}, format);
  if (out.numel() == 0) return out;
  for_dtype(image.scalar_type(), "area_downsample", [&](auto zero) {
    using T = decltype(zero);
    using F = typename Compute<T>::type;
    downsample<T, F><<<blocks_for(out.numel()), kThreads, 0, current_stream(image)>>>(
        data_of<T>(image), data_to<T>(out), out.numel(), format == MemoryFormat::ChannelsLast ? image.size(1) : 1,
        image.size(2), image.size(3), height, width);
    check_launch("area_downsample");
  });
  return out;
}

Tensor attention_blend(const Tensor& logits_, const Tensor& restored_, const Tensor& known_) {
  check_blend(logits_, {&restored_, &known_});
  const torch::stable::accelerator::DeviceGuard guard(logits_.get_device_index());
  const MemoryFormat format = format_of(restored_);
  const Tensor logits = torch::stable::contiguous(logits_, format);
  const Tensor restored = torch::stable::contiguous(restored_, format);
  const Tensor known = torch::stable::contiguous(known_, format);
  const Tensor out = empty(logits, logits.sizes(), format);
  if (out.numel() == 0) return out;
  for_dtype(logits.scalar_type(), "attention_blend", [&](auto zero) {
    using T = decltype(zero);
    using F = typename Compute<T>::type;
    blend<T, F><<<blocks_for(out.numel()), kThreads, 0, current_stream(logits)>>>(
        data_of<T>(logits), data_of<T>(restored), data_of<T>(known), data_to<T>(out), out.numel());
    check_launch("attention_blend");
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> attention_blend_backward(const Tensor& gradient_, const Tensor& logits_,
                                                            const Tensor& restored_, const Tensor& known_) {
  check_blend(logits_, {&gradient_, &restored_, &known_});
  const torch::stable::accelerator::DeviceGuard guard(logits_.get_device_index());
  const MemoryFormat format = format_of(restored_);
  const Tensor gradient = torch::stable::contiguous(gradient_, format);
  const Tensor logits = torch::stable::contiguous(logits_, format);
  const Tensor restored = torch::stable::contiguous(restored_, format);
  const Tensor known = torch::stable::contiguous(known_, format);
  const Tensor by_logits = empty(logits, logits.sizes(), format), by_restored = empty(logits, logits.sizes(), format);
  const Tensor by_known = empty(logits, logits.sizes(), format);
  if (logits.numel() == 0) return {by_logits, by_restored, by_known};
  for_dtype(logits.scalar_type(), "attention_blend_backward", [&](auto zero) {
    using T = decltype(zero);
    using F = typename Compute<T>::type;
    blend_backward<T, F><<<blocks_for(logits.numel()), kThreads, 0, current_stream(logits)>>>(
        data_of<T>(gradient), data_of<T>(logits), data_of<T>(restored), data_of<T>(known), data_to<T>(by_logits),
        data_to<T>(by_restored), data_to<T>(by_known), logits.numel());
    check_launch("attention_blend_backward");
  });
  return {by_logits, by_restored, by_known};
}

}  // namespace
}  // namespace deocc

STABLE_TORCH_LIBRARY_IMPL(deocc, CUDA, m) {
  m.impl("gated_projection", TORCH_BOX(&deocc::gated_projection));
  m.impl("gated_projection_products", TORCH_BOX(&deocc::gated_projection_products));
  m.impl("gated_projection_features", TORCH_BOX(&deocc::gated_projection_features));
  m.impl("channel_attention_projection", TORCH_BOX(&deocc::channel_attention_projection));
  m.impl("area_downsample", TORCH_BOX(&deocc::area_downsample));
  m.impl("attention_blend", TORCH_BOX(&deocc::attention_blend));
  m.impl("attention_blend_backward", TORCH_BOX(&deocc::attention_blend_backward));
}
