// Product of experts, K samples of it and its KL to N(0, I), in one pass over the experts.
#pragma once

#include "product_of_experts.h"

namespace mmvae {
namespace MMVAE_ISA {

template <class T>
static void poe_sample_kl(const PoE<T>& a, int64_t begin, int64_t end) {
  using V = Vec<T>;
  NoiseTile<T> noise;
  for (int64_t r = begin; r < end; ++r) a.kl[r] = 0;
  for_tiles(begin, end, a.dim, [&](int64_t r0, int64_t r1, int64_t d0, int64_t d1) {
    noise.fill(r0, r1, d0, d1, 0, a.seed);
    for (int64_t r = r0; r < r1; ++r) {
      const Observed<T> row(a.experts, r, d0);
      const T* eps = noise.row(r);
      V kl{};
      for_runs(d1 - d0, [&](int64_t d, int64_t n) {
        const int64_t at = r * a.dim + d0 + d;
        T *mu = a.mu + at, *logvar = a.logvar + at, *z = a.samples > 0 ? a.z + at : nullptr;
        product(row, a.prior, d, n, [&](int64_t i, int lanes, const Moments<V>& joint) __attribute__((always_inline)) {
          const V h = joint.logvar * static_cast<T>(0.5);
          const ExpAndTail<V> sd = exp_and_tail(h);
          kl += first(kl_to_standard(joint.mu, h, sd.minus_1_minus_x), lanes);
          store(mu + i, joint.mu, lanes);
          store(logvar + i, joint.logvar, lanes);
          if (z != nullptr) store(z + i, fma(sd.value, load(eps + d + i), joint.mu), lanes);
        });
      });
      a.kl[r] += sum(kl);
    }
    for (int64_t k = 1; k < a.samples; ++k) {  // further samples: the joint is still in the cache
      noise.fill(r0, r1, d0, d1, k, a.seed);
      for (int64_t r = r0; r < r1; ++r) {
        const T *mu = a.mu + r * a.dim + d0, *logvar = a.logvar + r * a.dim + d0;
        for_lanes<T>(d1 - d0, [&](int64_t i, int n) __attribute__((always_inline)) {
          const V sd = exp(load(logvar + i, n) * static_cast<T>(0.5));
          store(a.z + (k * a.rows + r) * a.dim + d0 + i, fma(sd, load(noise.row(r) + i), load(mu + i, n)), n);
        });
      }
    }
  });
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
