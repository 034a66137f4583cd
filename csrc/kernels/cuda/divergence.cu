// KL of diagonal Gaussians or Laplace distributions, to a prior of given or standard moments.
#include "../laplace.h"
#include "device.cuh"

namespace mmvae {
namespace cuda {

// KL of one dimension and its derivatives. d = mu - prior_mu; h, prior_h = half the log-variances (for a Laplace the
// logarithm of its scale).
template <class A>
MMVAE_DEVICE A normal_kl(A d, A h, A prior_h) {
  return kl_to_standard(d * exp(-prior_h), exp_and_tail(h - prior_h));
}

template <class A>
MMVAE_DEVICE DivergenceGrads<A> normal_kl_adjoint(A grad_kl, A d, A h, A prior_h) {
  const A inverse = exp(-prior_h), t = d * inverse, excess = expm1(2 * (h - prior_h)), half = grad_kl * A(0.5);
  return {grad_kl * t * inverse, half * excess, -half * (excess + t * t)};
}

template <class A>
MMVAE_DEVICE LaplacePair<A> laplace_pair(A d, A h, A prior_h) {
  const A t = magnitude(d) * exp(-h);
  const ExpAndTail<A> ratio = exp_and_tail(h - prior_h);
  return {magnitude(d) * exp(-prior_h), t, ratio, smaller(ratio.value, largest<A>()), exp_and_tail(-t)};
}

template <int N, class S>
MMVAE_DEVICE Pack<Arithmetic<S>, N> load_prior(const Rows<const S>& prior, int64_t row, int64_t d, int64_t n) {
  return prior.data == nullptr ? Pack<Arithmetic<S>, N>{} : load<N>(prior.row(row) + d, n);
}

template <class S>
static __global__ void __launch_bounds__(kBlock) divergence(const __grid_constant__ Divergence<S> a, int team) {
  using A = Arithmetic<S>;
  constexpr int N = kPack<S>;
  for_rows(a.rows, team, [&](int64_t row, int lane, bool valid) {
    A kl = 0;
    if (valid) {
      for_packs<N>(a.dim, team, lane, [&](int64_t d, int64_t n) {
        const Pack<A, N> mu = load<N>(a.mu.row(row) + d, n), logvar = load<N>(a.logvar.row(row) + d, n);
        const Pack<A, N> prior_mu = load_prior<N>(a.prior_mu, row, d, n);
        const Pack<A, N> prior_logvar = load_prior<N>(a.prior_logvar, row, d, n);
#pragma unroll
        for (int i = 0; i < N; ++i) {  // past the end everything is 0, and so is the KL
          const A delta = mu[i] - prior_mu[i], h = logvar[i] * static_cast<A>(0.5);
          const A prior_h = prior_logvar[i] * static_cast<A>(0.5);
          kl +=
              a.family == Family::laplace ? laplace_kl(laplace_pair(delta, h, prior_h)) : normal_kl(delta, h, prior_h);
        }
      });
    }
    kl = team_sum(kl, team);
    if (valid && lane == 0) a.kl[row] = kl;
  });
}

template <class S>
static __global__ void __launch_bounds__(kBlock)
    divergence_backward(const __grid_constant__ DivergenceBackward<S> a, int team) {
  using A = Arithmetic<S>;
  constexpr int N = kPack<S>;
  for_rows(a.rows, team, [&](int64_t row, int lane, bool valid) {
    if (!valid) return;
    const A grad_kl = a.grad_kl[row];
    for_packs<N>(a.dim, team, lane, [&](int64_t d, int64_t n) {
      Pack<A, N> mu = load<N>(a.mu.row(row) + d, n), logvar = load<N>(a.logvar.row(row) + d, n);
      Pack<A, N> prior_mu = load_prior<N>(a.prior_mu, row, d, n);
      Pack<A, N> prior_logvar = load_prior<N>(a.prior_logvar, row, d, n);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A delta = mu[i] - prior_mu[i], h = logvar[i] * static_cast<A>(0.5);
        const A prior_h = prior_logvar[i] * static_cast<A>(0.5);
        const DivergenceGrads<A> g = a.family == Family::laplace ? laplace_kl_adjoint(grad_kl, delta, exp(-prior_h),
                                                                                      laplace_pair(delta, h, prior_h))
                                                                 : normal_kl_adjoint(grad_kl, delta, h, prior_h);
        mu[i] = g.mu;
        logvar[i] = g.logvar;
        prior_mu[i] = -g.mu;
        prior_logvar[i] = g.prior_logvar;
      }
      const int64_t at = row * a.dim + d;
      store<N>(a.grad_mu + at, mu, n);
      store<N>(a.grad_logvar + at, logvar, n);
      if (a.grad_prior_mu != nullptr) store<N>(a.grad_prior_mu + at, prior_mu, n);
      if (a.grad_prior_logvar != nullptr) store<N>(a.grad_prior_logvar + at, prior_logvar, n);
    });
  });
}

template <class S>
static void start(const Divergence<S>& a, cudaStream_t stream) {
  const int team = team_of_packs<S>(a.dim);
  start_kernel("divergence", divergence<S>, blocks_for(a.rows, team), stream, a, team);
}

template <class S>
static void start(const DivergenceBackward<S>& a, cudaStream_t stream) {
  const int team = team_of_packs<S>(a.dim);
  start_kernel("divergence_backward", divergence_backward<S>, blocks_for(a.rows, team), stream, a, team);
}

MMVAE_DEFINE_LAUNCH(Divergence)
MMVAE_DEFINE_LAUNCH(DivergenceBackward)

}  // namespace cuda
}  // namespace mmvae
