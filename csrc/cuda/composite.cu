// CUDA and not Triton: the operator proves the nvcc path, and both would only wait for memory. Not yet timed on a GPU.
#include "../composite.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "launch.h"

namespace deocc {
namespace {

// One thread for each pixel: it reads the occlusion once for all channels. `channel` and `pixel` are the distances
// between two channels of a pixel and between two pixels, so one kernel serves both element orders.
struct Steps {
  int64_t total, pixels, channels, sample, channel, pixel;

  explicit Steps(const Planes& planes)
      : total(planes.batch * planes.pixels),
        pixels(planes.pixels),
        channels(planes.channels),
        sample(planes.channels * planes.pixels),
        channel(planes.channels_last() ? 1 : planes.pixels),
        pixel(planes.channels_last() ? planes.channels : 1) {}

  __device__ int64_t first(int64_t index) const { return index / pixels * sample + index % pixels * pixel; }
};

template <class T>
__global__ void blend(const T* __restrict__ image, const T* __restrict__ fill, const T* __restrict__ occlusion,
                      T* __restrict__ out, Steps steps) {
  using F = typename Compute<T>::type;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < steps.total; index += stride) {
    const F o = static_cast<F>(occlusion[index]);
    int64_t at = steps.first(index);
    for (int64_t c = 0; c < steps.channels; ++c, at += steps.channel) {
      const F i = static_cast<F>(image[at]), f = static_cast<F>(fill[at]);
      const F between = (F(1) - o) * i + o * f;
      out[at] = static_cast<T>(o == F(0) ? i : o == F(1) ? f : between);
    }
  }
}

template <class T>
__global__ void blend_backward(const T* __restrict__ gradient, const T* __restrict__ image,
                               const T* __restrict__ fill, const T* __restrict__ occlusion, T* __restrict__ by_image,
                               T* __restrict__ by_fill, T* __restrict__ by_occlusion, Steps steps) {
  using F = typename Compute<T>::type;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < steps.total; index += stride) {
    const F o = static_cast<F>(occlusion[index]);
    F sum = 0;
    int64_t at = steps.first(index);
    for (int64_t c = 0; c < steps.channels; ++c, at += steps.channel) {
      const F g = static_cast<F>(gradient[at]);
      by_image[at] = static_cast<T>((F(1) - o) * g);
      by_fill[at] = static_cast<T>(o * g);
      sum += g * (static_cast<F>(fill[at]) - static_cast<F>(image[at]));
    }
    by_occlusion[index] = static_cast<T>(sum);
  }
}

Tensor composite(const Tensor& image_, const Tensor& fill_, const Tensor& occlusion_) {
  const Planes planes = composite_planes(image_, fill_, occlusion_);
  const torch::stable::accelerator::DeviceGuard guard(image_.get_device_index());
  const Tensor image = torch::stable::contiguous(image_, planes.format);
  const Tensor fill = torch::stable::contiguous(fill_, planes.format);
  const Tensor occlusion = torch::stable::contiguous(occlusion_);
  const Tensor out = empty(image, image.sizes(), planes.format);
  if (out.numel() == 0) return out;

  for_dtype(image.scalar_type(), "composite", [&](auto zero) {
    using T = decltype(zero);
    const Steps steps(planes);
    blend<<<blocks_for(steps.total), kThreads, 0, current_stream(image)>>>(
        static_cast<const T*>(image.const_data_ptr()), static_cast<const T*>(fill.const_data_ptr()),
        static_cast<const T*>(occlusion.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()), steps);
    check_launch("composite");
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> composite_backward(const Tensor& gradient_, const Tensor& image_,
                                                      const Tensor& fill_, const Tensor& occlusion_) {
  const Planes planes = composite_planes(image_, fill_, occlusion_);
  composite_planes(gradient_, fill_, occlusion_);
  const torch::stable::accelerator::DeviceGuard guard(image_.get_device_index());
  const Tensor gradient = torch::stable::contiguous(gradient_, planes.format);
  const Tensor image = torch::stable::contiguous(image_, planes.format);
  const Tensor fill = torch::stable::contiguous(fill_, planes.format);
  const Tensor occlusion = torch::stable::contiguous(occlusion_);
  const Tensor by_image = empty(image, image.sizes(), planes.format);
  const Tensor by_fill = empty(image, image.sizes(), planes.format);
  const Tensor by_occlusion = empty(image, occlusion.sizes());
  if (by_occlusion.numel() == 0) return {by_image, by_fill, by_occlusion};

  for_dtype(image.scalar_type(), "composite_backward", [&](auto zero) {
    using T = decltype(zero);
    const Steps steps(planes);
    blend_backward<<<blocks_for(steps.total), kThreads, 0, current_stream(image)>>>(
        static_cast<const T*>(gradient.const_data_ptr()), static_cast<const T*>(image.const_data_ptr()),
        static_cast<const T*>(fill.const_data_ptr()), static_cast<const T*>(occlusion.const_data_ptr()),
        static_cast<T*>(by_image.mutable_data_ptr()), static_cast<T*>(by_fill.mutable_data_ptr()),
        static_cast<T*>(by_occlusion.mutable_data_ptr()), steps);
    check_launch("composite_backward");
  });
  return {by_image, by_fill, by_occlusion};
}

}  // namespace
}  // namespace deocc

STABLE_TORCH_LIBRARY_IMPL(deocc, CUDA, m) {
  m.impl("composite", TORCH_BOX(&deocc::composite));
  m.impl("composite_backward", TORCH_BOX(&deocc::composite_backward));
}
