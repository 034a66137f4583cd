// z = mu + e^(logvar / 2) * eps.
//
// Floor: 12 bytes an element forward, 20 backward (24 with the look at logvar, see sample_backward.h); what limits the
// forward is drawing the noise.
#include "ops.h"
#include "sample_backward.h"

namespace mmvae {
namespace MMVAE_ISA {

template <class S>
void reparameterize(const Reparameterize<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  const SeedValue seed = a.seed.read();
  NoiseTile<T> noise;
  for_tiles(begin, end, a.dim, [&](int64_t r0, int64_t r1, int64_t d0, int64_t d1) {
    for (int64_t k = 0; k < a.samples; ++k) {
      noise.fill(r0, r1, d0, d1, k, seed, a.family);
      for (int64_t r = r0; r < r1; ++r) {
        const S *mu = a.mu.row(r) + d0, *logvar = a.logvar.row(r) + d0;
        const T* eps = noise.row(r);
        S* z = a.z + (k * a.rows + r) * a.dim + d0;
        for_lanes<S>(d1 - d0, [&](int64_t i, int n) __attribute__((always_inline)) {
          const Vec<S> scale = exp(load(logvar + i, n) * static_cast<T>(0.5));
          store(z + i, fma(scale, load(eps + i), load(mu + i, n)), n);
        });
      }
    }
  });
}

template <class S>
void reparameterize_backward(const ReparameterizeBackward<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  const Samples<S> samples{a.grad_z, a.z, a.samples, a.rows, a.dim, a.seed.read(), a.family};
  NoiseTile<T> noise;
  for (int64_t r = begin; r < end; ++r) {
    S *grad_mu = a.grad_mu + r * a.dim, *grad_logvar = a.grad_logvar + r * a.dim;
    for_runs(a.dim, [&](int64_t d, int64_t n) {
      const S *mu = a.mu.row(r) + d, *logvar = a.logvar.row(r) + d;
      if constexpr (kIsHalf<S>) {  // summed over the samples in float, then rounded once
        Run<T> mu_sum, logvar_sum;
        sample_adjoints(samples, r, d, n, mu, logvar, noise, /*add=*/false, mu_sum.values, logvar_sum.values);
        for_lanes<S>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
          store(grad_mu + d + i, load(mu_sum.values + i, lanes), lanes);
          store(grad_logvar + d + i, load(logvar_sum.values + i, lanes), lanes);
        });
      } else {
        sample_adjoints(samples, r, d, n, mu, logvar, noise, /*add=*/false, grad_mu + d, grad_logvar + d);
      }
    });
  }
}

MMVAE_FOR_EVERY_TYPE(reparameterize, Reparameterize)
MMVAE_FOR_EVERY_TYPE(reparameterize_backward, ReparameterizeBackward)

}  // namespace MMVAE_ISA
}  // namespace mmvae
