// What the densities of normal and Laplace distributions share: distances in units of the scale, and their derivatives.
#pragma once

#include "device.cuh"

namespace mmvae {
namespace cuda {

// -log density = cost + log scale + this.
template <class A>
MMVAE_DEVICE A log_of_constant(Family family) {
  return static_cast<A>(family == Family::laplace ? 0.69314718055994531 : 0.91893853320467274);
}

// 1 / scale, but finite: a distance of 0 stays 0 at the smallest scales.
template <class A>
MMVAE_DEVICE A inverse(A scale) {
  return smaller(1 / scale, largest<A>());
}

template <class A>
MMVAE_DEVICE A not_a_number() {
  return static_cast<A>(NAN);
}

// Elements p[0 .. n) of positive numbers; the pack's rest is 1, whose logarithm is 0.
template <int N, class S>
MMVAE_DEVICE Pack<Arithmetic<S>, N> load_scale(const S* p, int64_t n) {
  Pack<Arithmetic<S>, N> x = load<N>(p, n);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = i < n ? x[i] : 1;
  return x;
}

// t^2 / 2 or |t|, and its derivative; t = (x - mean) / scale.
template <class A>
MMVAE_DEVICE A cost(bool laplace, A t) {
  return laplace ? magnitude(t) : static_cast<A>(0.5) * t * t;
}
template <class A>
MMVAE_DEVICE A slope(bool laplace, A t) {
  return laplace ? (t > 0 ? 1 : t < 0 ? -1 : t) : t;  // NaN stays
}

}  // namespace cuda
}  // namespace mmvae
