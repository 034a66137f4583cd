// Starts the CUDA kernels: an overload for every argument struct of kernels.h and element type, a launch each.
//
// Pointers are device pointers. Nothing is allocated, waited for or read back: what is launched
// here can be captured in a CUDA graph. Throws std::runtime_error if the driver refuses a launch.
#pragma once

#ifdef MMVAE_CUDA_EMULATED
#include "cuda_emulator.h"
#else
#include <cuda_runtime_api.h>
#endif

#include "../kernels.h"

namespace mmvae {
namespace cuda {

// X(struct) for every operation.
#define MMVAE_FOR_EACH_CUDA_KERNEL(X) \
  X(Reparameterize)                   \
  X(ReparameterizeBackward)           \
  X(Divergence)                       \
  X(DivergenceBackward)               \
  X(PoE)                              \
  X(PoEBackward)                      \
  X(PoEWeightsBackward)               \
  X(SubsetPosteriors)                 \
  X(SubsetPosteriorsBackward)         \
  X(MoPoE)                            \
  X(MoPoEBackward)                    \
  X(MixtureLogProb)                   \
  X(MixtureLogProbBackward)           \
  X(LogLikelihood)                    \
  X(LogLikelihoodBackward)

#define MMVAE_DECLARE(Args)                         \
  void launch(const Args<float>&, cudaStream_t);    \
  void launch(const Args<double>&, cudaStream_t);   \
  void launch(const Args<bfloat16>&, cudaStream_t); \
  void launch(const Args<float16>&, cudaStream_t);
MMVAE_FOR_EACH_CUDA_KERNEL(MMVAE_DECLARE)
#undef MMVAE_DECLARE

// `count` numbers for memory on the device, which is otherwise only reached by copies.
struct Numbers {
  static constexpr int kHeld = 500;
  int64_t* to;
  int count;
  int64_t number[kHeld];
};
void launch(const Numbers&, cudaStream_t);

// At the end of a .cu file: the overloads for Args, from its template start<S>(args, stream).
#define MMVAE_DEFINE_LAUNCH(Args)                                                       \
  void launch(const Args<float>& args, cudaStream_t stream) { start(args, stream); }    \
  void launch(const Args<double>& args, cudaStream_t stream) { start(args, stream); }   \
  void launch(const Args<bfloat16>& args, cudaStream_t stream) { start(args, stream); } \
  void launch(const Args<float16>& args, cudaStream_t stream) { start(args, stream); }

}  // namespace cuda
}  // namespace mmvae
