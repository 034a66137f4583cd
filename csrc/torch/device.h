// The one place that knows which device this copy of the op files is compiled for (but for subsets, which the kernels
// there are told in another way: subsets.h).
//
// `_C` holds them for the CPU, `_C_cuda` (MMVAE_CUDA) for CUDA: the same checks and allocations, and kernels behind the
// same argument structs.
#pragma once

#include "stable.h"

#ifdef MMVAE_CUDA
#include "../kernels/cuda/launch.h"
#endif
#if defined(MMVAE_CUDA) && !defined(MMVAE_CUDA_EMULATED)
#include <torch/csrc/stable/accelerator.h>
#define MMVAE_DISPATCH_KEY CUDA
#else
#define MMVAE_DISPATCH_KEY CPU
#endif

namespace mmvae {

// Whether what tensors hold can be looked at here. On a GPU that would be a synchronisation, and stop a capture.
#if defined(MMVAE_CUDA) && !defined(MMVAE_CUDA_EMULATED)
constexpr bool kReadable = false;
#else
constexpr bool kReadable = true;
#endif

#ifdef MMVAE_CUDA

#ifdef MMVAE_CUDA_EMULATED
inline cudaStream_t current_stream(const Tensor&) { return nullptr; }
struct OnDeviceOf {
  explicit OnDeviceOf(const Tensor&) {}
};
#else
inline cudaStream_t current_stream(const Tensor& on) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}
struct OnDeviceOf : torch::stable::accelerator::DeviceGuard {
  explicit OnDeviceOf(const Tensor& on) : DeviceGuard(on.get_device_index()) {}
};
#endif

// On the current stream of the tensor's device.
template <class Args>
void launch_on(const Tensor& on, const Args& args) {
  const OnDeviceOf guard(on);
  cuda::launch(args, current_stream(on));
}

// All rows at once.
template <class S, class Args>
void run(Kernel<Args> Table<S>::*, const Args& args, int64_t rows, int64_t /*work_per_row*/, const Tensor& on) {
  if (rows > 0) launch_on(on, args);
}

#else

// Splits rows over torch's threads; a chunk is worth about 16k elementary steps.
template <class S, class Args>
void run(Kernel<Args> Table<S>::* kernel, const Args& args, int64_t rows, int64_t work_per_row, const Tensor&) {
  if (rows == 0) return;
  const Kernel<Args> f = table<S>().*kernel;
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, work_per_row));
  if (rows <= grain) {
    f(args, 0, rows);
  } else {
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) { f(args, begin, end); });
  }
}

#endif

}  // namespace mmvae
