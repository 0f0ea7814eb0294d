#include "../composite.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "clones.h"

namespace deocc {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kBlock = 2048;        // elements that are worked on together: they stay in the first-level cache
constexpr int64_t kPerThread = 1 << 15;  // elements below which a second thread costs more than it saves

template <class T>
DEOCC_INLINE void blend(const T* __restrict image, const T* __restrict fill, const T* __restrict occlusion,
                        T* __restrict out, int64_t count) {
  using F = typename Compute<T>::type;
  for (int64_t k = 0; k < count; ++k) {
    const F o = occlusion[k], i = image[k], f = fill[k];
    const F between = (F(1) - o) * i + o * f;
    out[k] = static_cast<T>(o == F(0) ? i : o == F(1) ? f : between);
  }
}

// Adds each element's share to by_occlusion.
template <class T, class F>
DEOCC_INLINE void blend_backward(const T* __restrict gradient, const T* __restrict image, const T* __restrict fill,
                                 const T* __restrict occlusion, T* __restrict by_image, T* __restrict by_fill,
                                 F* __restrict by_occlusion, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    const F o = occlusion[k], g = gradient[k];
    by_image[k] = static_cast<T>((F(1) - o) * g);
    by_fill[k] = static_cast<T>(o * g);
    by_occlusion[k] += g * (static_cast<F>(fill[k]) - static_cast<F>(image[k]));
  }
}

// A function is cloned for instruction sets only when it is no template.
#define DEOCC_ROWS(T)                                                                                             \
  DEOCC_CLONES void row(const T* image, const T* fill, const T* occlusion, T* out, int64_t count) {               \
    blend(image, fill, occlusion, out, count);                                                                    \
  }                                                                                                               \
  DEOCC_CLONES void row_backward(const T* gradient, const T* image, const T* fill, const T* occlusion,            \
                                 T* by_image, T* by_fill, Compute<T>::type* by_occlusion, int64_t count) {        \
    blend_backward(gradient, image, fill, occlusion, by_image, by_fill, by_occlusion, count);                     \
  }
DEOCC_ROWS(float)
DEOCC_ROWS(double)
DEOCC_ROWS(BFloat16)
DEOCC_ROWS(Half)
#undef DEOCC_ROWS

// Calls work(first element, elements to the next channel, occlusion of these elements, elements in a row, rows) for
// blocks of every sample: a block is one row for each channel, or, channels last, a single row of whole pixels.
template <class T, class Work>
void for_blocks(const Planes& planes, const T* occlusion, const Work& work) {
  const int64_t channels = std::max<int64_t>(planes.channels, 1);
  const int64_t block = planes.channels_last() ? std::max<int64_t>(kBlock / channels, 1) : kBlock;
  const auto range = [&](int64_t begin, int64_t end) {
    std::vector<T> spread(planes.channels_last() ? block * channels : 0);
    while (begin < end) {
      const int64_t sample = begin / planes.pixels, pixel = begin % planes.pixels;
      const int64_t count = std::min({block, end - begin, planes.pixels - pixel});
      if (planes.channels_last()) {
        for (int64_t p = 0; p < count; ++p) {
          std::fill_n(spread.data() + p * channels, channels, occlusion[begin + p]);
        }
        work(begin * channels, begin, count, spread.data());
      } else {
        work(sample * channels * planes.pixels + pixel, begin, count, occlusion + begin);
      }
      begin += count;
    }
  };
  torch::stable::parallel_for(0, planes.batch * planes.pixels, std::max<int64_t>(kPerThread / channels, 1), range);
}

Tensor composite(const Tensor& image_, const Tensor& fill_, const Tensor& occlusion_) {
  const Planes planes = composite_planes(image_, fill_, occlusion_);
  const Tensor image = torch::stable::contiguous(image_, planes.format);
  const Tensor fill = torch::stable::contiguous(fill_, planes.format);
  const Tensor occlusion = torch::stable::contiguous(occlusion_);
  const Tensor out = empty(image, image.sizes(), planes.format);
  if (out.numel() == 0) return out;

  for_dtype(image.scalar_type(), "composite", [&](auto zero) {
    using T = decltype(zero);
    const T* i = static_cast<const T*>(image.const_data_ptr());
    const T* f = static_cast<const T*>(fill.const_data_ptr());
    T* to = static_cast<T*>(out.mutable_data_ptr());
    const int64_t rows = planes.channels_last() ? 1 : planes.channels;
    const int64_t width = planes.channels_last() ? planes.channels : 1;
    for_blocks(planes, static_cast<const T*>(occlusion.const_data_ptr()),
               [&](int64_t at, int64_t, int64_t count, const T* o) {
                 for (int64_t c = 0; c < rows; ++c, at += planes.pixels) {
                   row(i + at, f + at, o, to + at, count * width);
                 }
               });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> composite_backward(const Tensor& gradient_, const Tensor& image_,
                                                      const Tensor& fill_, const Tensor& occlusion_) {
  const Planes planes = composite_planes(image_, fill_, occlusion_);
  composite_planes(gradient_, fill_, occlusion_);
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
    using F = typename Compute<T>::type;
    const T* g = static_cast<const T*>(gradient.const_data_ptr());
    const T* i = static_cast<const T*>(image.const_data_ptr());
    const T* f = static_cast<const T*>(fill.const_data_ptr());
    T* to_image = static_cast<T*>(by_image.mutable_data_ptr());
    T* to_fill = static_cast<T*>(by_fill.mutable_data_ptr());
    T* to_occlusion = static_cast<T*>(by_occlusion.mutable_data_ptr());
    const int64_t rows = planes.channels_last() ? 1 : planes.channels;
    const int64_t width = planes.channels_last() ? planes.channels : 1;
    for_blocks(planes, static_cast<const T*>(occlusion.const_data_ptr()),
               [&](int64_t at, int64_t pixel, int64_t count, const T* o) {
                 thread_local std::vector<F> sums;
                 sums.assign(count * width, F(0));
                 for (int64_t c = 0; c < rows; ++c, at += planes.pixels) {
                   row_backward(g + at, i + at, f + at, o, to_image + at, to_fill + at, sums.data(), count * width);
                 }
                 for (int64_t k = 0; k < count; ++k) {
                   F sum = 0;
                   for (int64_t w = 0; w < width; ++w) sum += sums[k * width + w];
                   to_occlusion[pixel + k] = static_cast<T>(sum);
                 }
               });
  });
  return {by_image, by_fill, by_occlusion};
}

DEOCC_CLONES void row_uint8(const uint8_t* __restrict image, const uint8_t* __restrict fill,
                            const uint8_t* __restrict occlusion, uint8_t* __restrict out, int64_t pixels) {
  uint8_t spread[3 * kBlock];
  for (int64_t begin = 0; begin < pixels; begin += kBlock) {
    const int64_t count = std::min(kBlock, pixels - begin);
    for (int64_t p = 0; p < count; ++p) {
      for (int64_t c = 0; c < 3; ++c) spread[3 * p + c] = occlusion[begin + p];
    }
    const uint8_t *i = image + 3 * begin, *f = fill + 3 * begin;
    uint8_t* to = out + 3 * begin;
    for (int64_t k = 0; k < 3 * count; ++k) {
      // x / 255 rounded to nearest is (t + t / 256) / 256 with t = x + 128, exactly, for every x up to 255 * 255;
      // and all of it fits 16 bits, which doubles the lanes.
      const uint16_t o = spread[k];
      const uint16_t t = static_cast<uint16_t>(o * f[k] + (255 - o) * i[k] + 128);
      to[k] = static_cast<uint8_t>(static_cast<uint16_t>(t + (t >> 8)) >> 8);
    }
  }
}

}  // namespace

void composite_uint8(const uint8_t* image, const uint8_t* fill, const uint8_t* occlusion, uint8_t* out,
                     int64_t pixels) {
  torch::stable::parallel_for(0, pixels, kPerThread, [&](int64_t begin, int64_t end) {
    row_uint8(image + 3 * begin, fill + 3 * begin, occlusion + begin, out + 3 * begin, end - begin);
  });
}

}  // namespace deocc

STABLE_TORCH_LIBRARY_IMPL(deocc, CPU, m) {
  m.impl("composite", TORCH_BOX(&deocc::composite));
  m.impl("composite_backward", TORCH_BOX(&deocc::composite_backward));
}
