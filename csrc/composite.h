// composite: out = (1 - occlusion) * image + occlusion * fill
//
//   image, fill, out  (N, C, H, W)
//   occlusion         (N, 1, H, W), 1 = occluded
//
// Where occlusion is exactly 0 (1), out is the image (the fill) bit for bit, whatever the other holds.
//
// composite_backward: with the gradient (N, C, H, W) of out, the derivatives by
//   image      (1 - occlusion) * gradient
//   fill       occlusion * gradient
//   occlusion  sum over C of gradient * (fill - image)
//
// bfloat16 and float16 are computed in float and rounded once.
#pragma once

#include "tensor.h"

namespace deocc {

// (o * fill + (255 - o) * image) / 255 rounded to nearest. image, fill, out: (pixels, 3); occlusion: (pixels).
void composite_uint8(const uint8_t* image, const uint8_t* fill, const uint8_t* occlusion, uint8_t* out,
                     int64_t pixels);

// The sizes of a batch, and its elements' order. A pixel's channels are `channel` elements apart and its neighbour
// `pixel` elements away, in every tensor with C channels.
struct Planes {
  int64_t batch, channels, pixels;
  MemoryFormat format;

  bool channels_last() const { return format == MemoryFormat::ChannelsLast; }
};

// Throws unless the tensors fit together; the result follows the image's order.
inline Planes composite_planes(const Tensor& image, const Tensor& fill, const Tensor& occlusion) {
  STD_TORCH_CHECK(image.dim() == 4 && fill.dim() == 4 && occlusion.dim() == 4,
                  "composite: image, fill and occlusion must have 4 dimensions, got ", image.dim(), ", ", fill.dim(),
                  " and ", occlusion.dim());
  for (const int axis : {0, 1, 2, 3}) {
    STD_TORCH_CHECK(fill.size(axis) == image.size(axis), "composite: fill must have the image's size ",
                    image.size(axis), " along axis ", axis, ", got ", fill.size(axis));
    const int64_t wanted = axis == 1 ? 1 : image.size(axis);
    STD_TORCH_CHECK(occlusion.size(axis) == wanted, "composite: occlusion must have size ", wanted, " along axis ",
                    axis, ", got ", occlusion.size(axis));
  }
  for (const Tensor& other : {fill, occlusion}) {
    STD_TORCH_CHECK(other.scalar_type() == image.scalar_type(), "composite: one dtype is wanted, got ",
                    torch::headeronly::toString(image.scalar_type()), " and ",
                    torch::headeronly::toString(other.scalar_type()));
    STD_TORCH_CHECK(other.device() == image.device(), "composite: image, fill and occlusion must be on one device");
  }
  return {image.size(0), image.size(1), image.size(2) * image.size(3),
          is_channels_last(image) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous};
}

}  // namespace deocc
