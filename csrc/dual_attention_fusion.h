// Dual attention fusion: decoder features become an image, and that image is blended with the known one.
//
// gated_projection: out[n, o, p] = bias[o] + sum over c of weight[o, c] gate[n, c] features[n, c, p]
//   features (N, C, H, W)   gate (N, C)   weight (O, C)   bias (O)   out (N, O, H, W)
//   The gate is folded into the weights, so the rescaled features never exist.
//
// Its derivatives come from a gradient (N, O, H, W) of out in two steps, since the second may need the first:
//   gated_projection_products   products[n, o, c] = sum over p of gradient[n, o, p] features[n, c, p]
//                               sums[n, o]        = sum over p of gradient[n, o, p]
//   gated_projection_features   by_features[n, c, p] = shift[n, c] + sum over o of folded[n, o, c] gradient[n, o, p]
//                               folded[n, o, c] = weight[o, c] gate[n, c]
//   weight: sum over n of gate products; gate: sum over o of weight products; bias: sum over n of sums.
//
// channel_attention_projection: gated_projection by the gate that the features' averages give,
//   average[n, c] = mean over p of features[n, c, p]
//   gate = sigmoid(up relu(down average + down_bias) + up_bias)       down (R, C), up (C, R)
//   Returns out, average and gate. The shift above is for the derivative that comes back through the average.
//
// area_downsample: (N, C, H, W) -> (N, C, h, w), the mean of rows floor(i H / h) up to ceil((i + 1) H / h) - 1 and of
//   columns likewise.
//
// attention_blend: a restored + (1 - a) known with a = sigmoid(logits), all of one shape; and its derivatives.
//
// Features, images and gradients are of one dtype; all small tensors (gate, weights, averages, products) are of the
// dtype that it is computed in: float for bfloat16 and float16, which are rounded once.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <tuple>

#include "tensor.h"

namespace deocc {

// One sample's features and the image that they become.
struct ProjectionSizes {
  int64_t batch, channels, outputs, height, width, pixels;
  MemoryFormat format;

  bool channels_last() const { return format == MemoryFormat::ChannelsLast; }
};

inline ScalarType computed_in(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half ? ScalarType::Float : dtype;
}

inline MemoryFormat format_of(const Tensor& tensor) {
  return is_channels_last(tensor) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor empty_small(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  return torch::stable::empty(sizes, computed_in(like.scalar_type()), std::nullopt, like.device());
}

// Throws unless `tensor` has these sizes, and the dtype that `like` is computed in.
inline void check_small(const char* name, const char* what, const Tensor& tensor, const Tensor& like,
                        std::initializer_list<int64_t> sizes) {
  STD_TORCH_CHECK(tensor.dim() == static_cast<int64_t>(sizes.size()), name, ": ", what, " must have ", sizes.size(),
                  " dimensions, got ", tensor.dim());
  int axis = 0;
  for (const int64_t size : sizes) {
    STD_TORCH_CHECK(tensor.size(axis) == size, name, ": ", what, " must have size ", size, " along axis ", axis,
                    ", got ", tensor.size(axis));
    ++axis;
  }
  STD_TORCH_CHECK(tensor.scalar_type() == computed_in(like.scalar_type()), name, ": ", what, " must be ",
                  torch::headeronly::toString(computed_in(like.scalar_type())), ", got ",
                  torch::headeronly::toString(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.device() == like.device(), name, ": ", what, " must be on the device of the features");
}

inline void check_image(const char* name, const char* what, const Tensor& tensor, const Tensor& like) {
  STD_TORCH_CHECK(tensor.dim() == 4, name, ": ", what, " must have 4 dimensions, got ", tensor.dim());
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), name, ": one dtype is wanted, got ",
                  torch::headeronly::toString(like.scalar_type()), " and ",
                  torch::headeronly::toString(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.device() == like.device(), name, ": ", what, " must be on the device of the others");
}

// Throws unless there is something to average over and to project.
inline ProjectionSizes projection_sizes(const char* name, const Tensor& features, int64_t outputs) {
  STD_TORCH_CHECK(features.dim() == 4, name, ": features must have 4 dimensions, got ", features.dim());
  const int64_t height = features.size(2), width = features.size(3);
  STD_TORCH_CHECK(features.size(1) > 0 && height * width > 0 && outputs > 0, name,
                  ": at least one channel, one pixel and one output are wanted");
  return {features.size(0), features.size(1), outputs, height, width, height * width, format_of(features)};
}

inline ProjectionSizes projection_sizes(const char* name, const Tensor& features, const Tensor& weight,
                                        const Tensor& bias) {
  STD_TORCH_CHECK(weight.dim() == 2, name, ": weight must have 2 dimensions, got ", weight.dim());
  const ProjectionSizes n = projection_sizes(name, features, weight.size(0));
  check_small(name, "weight", weight, features, {n.outputs, n.channels});
  check_small(name, "bias", bias, features, {n.outputs});
  return n;
}

inline ProjectionSizes product_sizes(const Tensor& gradient, const Tensor& features) {
  const char* name = "gated_projection_products";
  check_image(name, "gradient", gradient, features);
  const ProjectionSizes n = projection_sizes(name, features, gradient.size(1));
  STD_TORCH_CHECK(gradient.size(0) == n.batch && gradient.size(2) == n.height && gradient.size(3) == n.width, name,
                  ": gradient and features must have the same batch, height and width");
  return n;
}

inline ProjectionSizes feature_sizes(const Tensor& gradient, const Tensor& folded, const Tensor& shift,
                                     bool channels_last) {
  const char* name = "gated_projection_features";
  STD_TORCH_CHECK(folded.dim() == 3, name, ": folded must have 3 dimensions, got ", folded.dim());
  ProjectionSizes n = projection_sizes(name, gradient, gradient.dim() == 4 ? gradient.size(1) : 0);
  n.channels = folded.size(2);
  n.format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  check_small(name, "folded", folded, gradient, {n.batch, n.outputs, n.channels});
  check_small(name, "shift", shift, gradient, {n.batch, n.channels});
  return n;
}

inline void check_gate(const Tensor& features, const Tensor& down, const Tensor& down_bias, const Tensor& up,
                       const Tensor& up_bias) {
  const char* name = "channel_attention_projection";
  STD_TORCH_CHECK(down.dim() == 2, name, ": down must have 2 dimensions, got ", down.dim());
  const int64_t channels = features.size(1), hidden = down.size(0);
  check_small(name, "down", down, features, {hidden, channels});
  check_small(name, "down_bias", down_bias, features, {hidden});
  check_small(name, "up", up, features, {channels, hidden});
  check_small(name, "up_bias", up_bias, features, {channels});
}

inline void check_blend(const Tensor& like, std::initializer_list<const Tensor*> others) {
  const char* name = "attention_blend";
  check_image(name, "logits", like, like);
  for (const Tensor* other : others) {
    check_image(name, "restored and known", *other, like);
    for (const int axis : {0, 1, 2, 3}) {
      STD_TORCH_CHECK(other->size(axis) == like.size(axis), name, ": one shape is wanted, got ", like.size(axis),
                      " and ", other->size(axis), " along axis ", axis);
    }
  }
}

inline void check_downsample(const Tensor& image, int64_t height, int64_t width) {
  const char* name = "area_downsample";
  check_image(name, "image", image, image);
  STD_TORCH_CHECK(height > 0 && width > 0 && height <= image.size(2) && width <= image.size(3), name,
                  ": the new size must be at least 1 x 1 and at most ", image.size(2), " x ", image.size(3), ", got ",
                  height, " x ", width);
}

}  // namespace deocc
