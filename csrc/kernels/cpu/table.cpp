// The table of one instruction set. CMake compiles this folder once per set, with MMVAE_ISA naming it.
#include "ops.h"

namespace mmvae {
namespace MMVAE_ISA {

template <class S>
static constexpr Table<S> kTable = {reparameterize<S>,
                                    reparameterize_backward<S>,
                                    divergence<S>,
                                    divergence_backward<S>,
                                    poe<S>,
                                    poe_backward<S>,
                                    poe_weights_backward<S>,
                                    subset_posteriors<S>,
                                    subset_posteriors_backward<S>,
                                    mopoe_sample_kl<S>,
                                    mopoe_sample_kl_backward<S>,
                                    mixture_log_prob<S>,
                                    mixture_log_prob_backward<S>,
                                    log_likelihood<S>,
                                    log_likelihood_backward<S>};

extern const Kernels kKernels;
const Kernels kKernels = {MMVAE_CAPABILITY, kTable<float>, kTable<double>, kTable<bfloat16>,
                          kTable<float16>,  normals,       normals};

}  // namespace MMVAE_ISA
}  // namespace mmvae
