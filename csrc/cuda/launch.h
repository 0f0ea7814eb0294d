// Starting a CUDA kernel on PyTorch's current stream, on the stable ABI alone.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>

#include "../tensor.h"

#ifdef DEOCC_TORCH_WITHOUT_CUDA
// Compiled only to check that it compiles: weak, so that the module loads without the symbol.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);
#endif

namespace deocc {

inline cudaStream_t current_stream(const Tensor& tensor) {
#ifdef DEOCC_TORCH_WITHOUT_CUDA
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "deocc was built with a torch that has no CUDA: build it again with the one that is installed");
#endif
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

constexpr int kThreads = 256;

// Blocks for a grid-stride loop over `count` items.
inline int blocks_for(int64_t count) {
  return static_cast<int>(std::min<int64_t>((count + kThreads - 1) / kThreads, 1 << 16));
}

inline void check_launch(const char* name) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, name, ": ", cudaGetErrorString(error));
}

}  // namespace deocc
