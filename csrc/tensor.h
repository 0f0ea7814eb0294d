// What every kernel needs from a tensor, on the stable ABI alone.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace deocc {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Whether the elements lie as N, H, W, C and not as N, C, H, W: what PyTorch answers to
// t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous(), for the fake kernels' sake.
inline bool is_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4 || tensor.is_contiguous()) return false;
  int64_t stride = 1;
  for (const int axis : {1, 3, 2, 0}) {
    if (tensor.size(axis) == 1) continue;
    if (tensor.stride(axis) != stride) return false;
    stride *= tensor.size(axis);
  }
  return true;
}

inline Tensor empty(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                    MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt, format);
}

// The type a value is computed in.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

// Calls function(T{}) for the floating-point type T that a dtype stands for.
template <class Function>
void for_dtype(ScalarType dtype, const char* name, const Function& function) {
  switch (dtype) {
    case ScalarType::Float:
      return function(float{});
    case ScalarType::Double:
      return function(double{});
    case ScalarType::BFloat16:
      return function(torch::headeronly::BFloat16{});
    case ScalarType::Half:
      return function(torch::headeronly::Half{});
    default:
      STD_TORCH_CHECK(false, name, ": dtype must be float32, float64, bfloat16 or float16, got ",
                      torch::headeronly::toString(dtype));
  }
}

}  // namespace deocc
