// What gradients of samples z_k = mu + scale * eps_k mean for mu and logvar; scale = e^(logvar / 2).
//
// scale * eps is recovered as z - mu: cheaper than drawing the noise again, and z is alive anyway. Where the scale is
// so small beside mu that z - mu has lost it to rounding, and for 16-bit types altogether, the noise is drawn again.
#pragma once

#include "../gaussian.h"
#include "noise.h"

namespace mmvae {
namespace MMVAE_ISA {

// Dimensions are taken in runs that fit a few arrays into the L1 cache. A multiple of 4: noise comes in fours.
constexpr int kRun = 512;

template <class F>
static MMVAE_INLINE void for_runs(int64_t dims, F f) {
  for (int64_t d = 0; d < dims; d += kRun) f(d, d + kRun < dims ? kRun : dims - d);
}

template <class T>
struct alignas(64) Run {
  T values[kRun];
};

// How many bits of mu may stand before those of the scale: at 8, z - mu keeps 16 of a float's 24.
constexpr int kLostBits = 8;

// Lanes where scale < 2^-kLostBits |mu|, roughly, or where it is infinite.
template <class V>
static MMVAE_INLINE auto noise_is_lost(V mu, V logvar) {
  using C = Constants<Element<V>>;
  return (rough_log2(mu * mu) > fma(logvar, C::log2_e, splat<V>(2 * kLostBits))) |
         (logvar > splat<V>(2 * C::exp_max - 8));
}

// The samples [K, rows, dim] of a tensor of Gaussians (or Laplace distributions) and the gradients of a loss to them.
template <class S>
struct Samples {
  const S* grad_z;
  const S* z;
  int64_t count, rows, dim;
  SeedValue seed;
  Family family;
};

// Sums over the samples of dims [d, d + n) of row r, n <= kRun: written, or with `add` added, to grad_mu[0 .. n) and
// grad_logvar[0 .. n). M is S or, for moments that were never rounded to it, the arithmetic type.
template <class S, class M>
static void sample_adjoints(const Samples<S>& s, int64_t r, int64_t d, int64_t n, const M* mu, const M* logvar,
                            NoiseTile<Arithmetic<S>>& noise, bool add, Arithmetic<S>* grad_mu,
                            Arithmetic<S>* grad_logvar) {
  using T = Arithmetic<S>;
  using V = Vec<S>;
  auto lost = V{} != V{};
  if (!kIsHalf<S>) {
    for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      lost |= noise_is_lost(load(mu + i, lanes), load(logvar + i, lanes));
    });
  }
  const bool redraw = kIsHalf<S> || any(lost);
  if (s.count == 0 && !add) {
    memset(grad_mu, 0, n * sizeof(T));
    memset(grad_logvar, 0, n * sizeof(T));
  }
  Run<T> sums;  // of grad_z * eps: times an infinite scale it is still of one sign
  for (int64_t k = 0; k < s.count; ++k) {
    if (redraw) noise.fill(r, r + 1, d, d + n, k, s.seed, s.family);
    const T* eps = redraw ? noise.row(r) : nullptr;
    const int64_t at = (k * s.rows + r) * s.dim + d;
    for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      const V grad_z = load(s.grad_z + at + i, lanes);
      const bool first_one = k == 0 && !add;
      store(grad_mu + i, first_one ? grad_z : load(grad_mu + i, lanes) + grad_z, lanes);
      if (redraw) {
        store(sums.values + i, k == 0 ? grad_z * load(eps + i) : fma(grad_z, load(eps + i), load(sums.values + i)));
        return;
      }
      const V scaled_eps = load(s.z + at + i, lanes) - load(mu + i, lanes);
      const V g = sample_adjoint(grad_z, scaled_eps).logvar;
      store(grad_logvar + i, first_one ? g : load(grad_logvar + i, lanes) + g, lanes);
    });
  }
  if (!redraw || s.count == 0) return;
  for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    const V sd = exp(load(logvar + i, lanes) * static_cast<T>(0.5));
    const V g = sample_adjoint(load(sums.values + i), sd).logvar;
    store(grad_logvar + i, add ? load(grad_logvar + i, lanes) + g : g, lanes);
  });
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
