// Numbers from the host to the device's memory, as a kernel's parameters: unlike a copy from pageable memory that waits
// for nothing, and a captured graph holds them itself.
#include "device.cuh"

namespace mmvae {
namespace cuda {

static __global__ void __launch_bounds__(kBlock) write_numbers(const __grid_constant__ Numbers a) {
  for (int i = static_cast<int>(threadIdx.x); i < a.count; i += kBlock) a.to[i] = a.number[i];
}

void launch(const Numbers& numbers, cudaStream_t stream) {
  start_kernel("write_numbers", write_numbers, 1, stream, numbers);
}

}  // namespace cuda
}  // namespace mmvae
