// z = mu + e^(logvar / 2) * eps.
//
// Floor: 12 bytes an element forward, 20 backward (24 with the look at logvar, see sample_backward.h); what limits the
// forward is drawing the noise.
#pragma once

#include "../kernels.h"
#include "sample_backward.h"

namespace mmvae {
namespace MMVAE_ISA {

template <class T>
static void reparameterize(const Reparameterize<T>& a, int64_t begin, int64_t end) {
  NoiseTile<T> noise;
  for_tiles(begin, end, a.dim, [&](int64_t r0, int64_t r1, int64_t d0, int64_t d1) {
    for (int64_t k = 0; k < a.samples; ++k) {
      noise.fill(r0, r1, d0, d1, k, a.seed);
      for (int64_t r = r0; r < r1; ++r) {
        const T *mu = a.mu.row(r) + d0, *logvar = a.logvar.row(r) + d0, *eps = noise.row(r);
        T* z = a.z + (k * a.rows + r) * a.dim + d0;
        for_lanes<T>(d1 - d0, [&](int64_t i, int n) __attribute__((always_inline)) {
          const Vec<T> sd = exp(load(logvar + i, n) * static_cast<T>(0.5));
          store(z + i, fma(sd, load(eps + i), load(mu + i, n)), n);
        });
      }
    }
  });
}

template <class T>
static void reparameterize_backward(const ReparameterizeBackward<T>& a, int64_t begin, int64_t end) {
  const Samples<T> samples{a.grad_z, a.z, a.samples, a.rows, a.dim, a.seed};
  NoiseTile<T> noise;
  for (int64_t r = begin; r < end; ++r) {
    T *grad_mu = a.grad_mu + r * a.dim, *grad_logvar = a.grad_logvar + r * a.dim;
    for_runs(a.dim, [&](int64_t d, int64_t n) {
      sample_adjoints(samples, r, d, n, a.mu.row(r) + d, a.logvar.row(r) + d, noise, /*add=*/false, grad_mu + d,
                      grad_logvar + d);
    });
  }
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
