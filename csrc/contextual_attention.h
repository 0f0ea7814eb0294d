// contextual_attention: every patch of the foreground is rebuilt from patches of the background that resemble it.
//
//   foreground, background, out   (N, C, H, W), H and W divisible by rate
//   occluded                      (N, 1, H, W) bool
//
// With f', b', o' every rate-th pixel of the three, h x w of them, L = h * w:
//   norm[k]    = max(|3 x 3 patch of b' at k|, 1e-4)
//   S[q, k]    = <3 x 3 patch of f' at q, 3 x 3 patch of b' at k> / norm[k]
//   A1[q, k]   = S[q - 1, k - 1] + S[q, k] + S[q + 1, k + 1]          row-major positions, 0 beyond either end
//   A2[q, k]   = likewise from A1, positions counted down the columns (without fuse, A2 is S)
//   E[q, k]    = softmax over k of (A2[q, k] * valid[k] * scale), times valid[k]
//   out        = sum over q, k of E[q, k] * (2 rate x 2 rate patch of b at k), placed at q, / 4
// valid[k] is 1 when nothing is occluded in the 3 x 3 neighbourhood of k in o', else 0. Outside of an image is 0.
//
// What the kernels compute instead, which is the same:
//   - The inner product of two patches is a sum over nine shifts, and these are two sums over three:
//       G[q, k] = <f'[q], b'[k]>     H[q, k] = sum over dx of G[q + dx, k + dx]     S = sum over dy of H / norm
//   - Pixel r = (ry, rx) of cell t in out is a sum over k of b[k, r] * T[t, k], where, with (sy, sx) the direction in
//     which the second patch that covers the pixel lies (see patch_side),
//       T[t, k] = E[t, k] + E[t + sx, k + sx] + E[t + sy w, k + sy w] + E[t + sy w + sx, k + sy w + sx]
// All of these are sums along diagonals: shifted in q and k alike.
//
// contextual_attention_backward: with the gradient of out, the derivatives by foreground and background.
// contextual_attention_offsets: position of the valid k with the highest A2[q, k], minus that of q: (N, 2, h, w) int32,
// rows and columns; 0 where no key is valid.
//
// bfloat16 and float16 are computed in float and rounded once, except that processors which multiply bfloat16 are given
// T, above, rounded to it.
#pragma once

#include "tensor.h"

namespace deocc {

struct AttentionSizes {
  int64_t batch, channels, height, width, rate;
  int64_t rows, columns, keys;  // h, w, L
};

// In which direction, along either axis, the second patch lies that covers pixel `offset` of a cell: patches begin
// rate / 2 pixels before their cell.
inline int patch_side(int64_t offset, int64_t rate) { return offset < rate - rate / 2 ? -1 : 1; }

// Throws unless the tensors fit together.
inline AttentionSizes attention_sizes(const Tensor& foreground, const Tensor& background, const Tensor& occluded,
                                      int64_t rate) {
  STD_TORCH_CHECK(foreground.dim() == 4 && background.dim() == 4 && occluded.dim() == 4,
                  "contextual_attention: foreground, background and occluded must have 4 dimensions, got ",
                  foreground.dim(), ", ", background.dim(), " and ", occluded.dim());
  for (const int axis : {0, 1, 2, 3}) {
    STD_TORCH_CHECK(background.size(axis) == foreground.size(axis),
                    "contextual_attention: background must have the foreground's size ", foreground.size(axis),
                    " along axis ", axis, ", got ", background.size(axis));
    const int64_t wanted = axis == 1 ? 1 : foreground.size(axis);
    STD_TORCH_CHECK(occluded.size(axis) == wanted, "contextual_attention: occluded must have size ", wanted,
                    " along axis ", axis, ", got ", occluded.size(axis));
  }
  const int64_t height = foreground.size(2), width = foreground.size(3);
  STD_TORCH_CHECK(rate >= 1 && height % rate == 0 && width % rate == 0,
                  "contextual_attention: rate must be at least 1 and divide height and width, got ", rate, " for ",
                  height, " x ", width);
  STD_TORCH_CHECK(background.scalar_type() == foreground.scalar_type(),
                  "contextual_attention: one dtype is wanted, got ",
                  torch::headeronly::toString(foreground.scalar_type()), " and ",
                  torch::headeronly::toString(background.scalar_type()));
  STD_TORCH_CHECK(occluded.scalar_type() == ScalarType::Bool, "contextual_attention: occluded must be bool, got ",
                  torch::headeronly::toString(occluded.scalar_type()));
  for (const Tensor& other : {background, occluded}) {
    STD_TORCH_CHECK(other.device() == foreground.device(),
                    "contextual_attention: foreground, background and occluded must be on one device");
  }
  const int64_t rows = height / rate, columns = width / rate;
  return {foreground.size(0), foreground.size(1), height, width, rate, rows, columns, rows * columns};
}

}  // namespace deocc
