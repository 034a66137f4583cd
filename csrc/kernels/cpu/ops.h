// Every CPU kernel of one instruction set: what table.cpp collects. Each is defined in the file of its name.
#pragma once

#include "../kernels.h"

namespace mmvae {
namespace MMVAE_ISA {

template <class S>
void reparameterize(const Reparameterize<S>&, int64_t begin, int64_t end);
template <class S>
void reparameterize_backward(const ReparameterizeBackward<S>&, int64_t begin, int64_t end);
template <class S>
void divergence(const Divergence<S>&, int64_t begin, int64_t end);
template <class S>
void divergence_backward(const DivergenceBackward<S>&, int64_t begin, int64_t end);
template <class S>
void poe(const PoE<S>&, int64_t begin, int64_t end);
template <class S>
void poe_backward(const PoEBackward<S>&, int64_t begin, int64_t end);
template <class S>
void poe_weights_backward(const PoEWeightsBackward<S>&, int64_t begin_block, int64_t end_block);
template <class S>
void subset_posteriors(const SubsetPosteriors<S>&, int64_t begin, int64_t end);
template <class S>
void subset_posteriors_backward(const SubsetPosteriorsBackward<S>&, int64_t begin, int64_t end);
template <class S>
void mopoe_sample_kl(const MoPoE<S>&, int64_t begin, int64_t end);
template <class S>
void mopoe_sample_kl_backward(const MoPoEBackward<S>&, int64_t begin, int64_t end);
template <class S>
void mixture_log_prob(const MixtureLogProb<S>&, int64_t begin, int64_t end);
template <class S>
void mixture_log_prob_backward(const MixtureLogProbBackward<S>&, int64_t begin, int64_t end);
template <class S>
void log_likelihood(const LogLikelihood<S>&, int64_t begin, int64_t end);
template <class S>
void log_likelihood_backward(const LogLikelihoodBackward<S>&, int64_t begin, int64_t end);

void normals(const Normals&, float* out, int64_t begin, int64_t end);
void normals(const Normals&, double* out, int64_t begin, int64_t end);

// At the end of a kernel's file: compiles it for the four element types.
#define MMVAE_FOR_EVERY_TYPE(kernel, Args)                       \
  template void kernel(const Args<float>&, int64_t, int64_t);    \
  template void kernel(const Args<double>&, int64_t, int64_t);   \
  template void kernel(const Args<bfloat16>&, int64_t, int64_t); \
  template void kernel(const Args<float16>&, int64_t, int64_t);

}  // namespace MMVAE_ISA
}  // namespace mmvae
