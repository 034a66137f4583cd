// z = mu + e^(logvar / 2) * eps.
//
// Floor: 12 bytes an element forward, 24 backward; what limits the forward is drawing the noise.
// Backward recovers sd * eps as z - mu: cheaper here than drawing it again, and z is alive anyway.
#pragma once

#include "../gaussian.h"
#include "../kernels.h"
#include "noise.h"

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
  for (int64_t r = begin; r < end; ++r) {
    const T* mu = a.mu.row(r);
    for_lanes<T>(a.dim, [&](int64_t i, int n) __attribute__((always_inline)) {
      Moments<Vec<T>> grad{};
      const Vec<T> m = load(mu + i, n);
      for (int64_t k = 0; k < a.samples; ++k) {
        const int64_t at = (k * a.rows + r) * a.dim + i;
        const Moments<Vec<T>> one = sample_adjoint(load(a.grad_z + at, n), load(a.z + at, n), m);
        grad.mu += one.mu;
        grad.logvar += one.logvar;
      }
      store(a.grad_mu + r * a.dim + i, grad.mu, n);
      store(a.grad_logvar + r * a.dim + i, grad.logvar, n);
    });
  }
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
