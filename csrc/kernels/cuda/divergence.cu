// KL of diagonal Gaussians or Laplace distributions, to a prior of given or standard moments.
#include "device.cuh"

namespace mmvae {
namespace cuda {

// KL of one dimension and its derivatives. d = mu - prior_mu; h, prior_h = half the log-variances (for a Laplace the
// logarithm of its scale).
template <class A>
struct Gradient {
  A mu, logvar, prior_logvar;  // to prior_mu it is -mu
};

template <class A>
MMVAE_DEVICE A normal_kl(A d, A h, A prior_h) {
  const A r = h - prior_h;
  return kl_to_standard(d * exp(-prior_h), r, exp_and_tail(r).minus_1_minus_x);
}

template <class A>
MMVAE_DEVICE Gradient<A> normal_kl_gradient(A d, A h, A prior_h) {
  const A inverse = exp(-prior_h), t = d * inverse, excess = expm1(2 * (h - prior_h));
  return {t * inverse, excess * static_cast<A>(0.5), (excess + t * t) * static_cast<A>(-0.5)};
}

// e^r (t + e^-t - 1) with t = |d| / b and r = log(b / b0); for large t, where t may overflow, from |d| / b0.
template <class A>
MMVAE_DEVICE A laplace_spread(A distance, A t, A r, A inverse_b0) {
  return t <= 1 ? exp(r) * exp_and_tail(-t).minus_1_minus_x : distance * inverse_b0 + exp(r) * expm1(-t);
}

template <class A>
MMVAE_DEVICE A laplace_kl(A d, A h, A prior_h) {
  const A distance = magnitude(d), t = distance * exp(-h), r = h - prior_h;
  const A spread = t == 0 ? A(0) : laplace_spread(distance, t, r, exp(-prior_h));  // t = 0: also where e^r is infinite
  return spread + exp_and_tail(r).minus_1_minus_x;
}

template <class A>
MMVAE_DEVICE Gradient<A> laplace_kl_gradient(A d, A h, A prior_h) {
  const A distance = magnitude(d), t = distance * exp(-h), r = h - prior_h, inverse_b0 = exp(-prior_h);
  const A spread = t == 0 ? A(0) : laplace_spread(distance, t, r, inverse_b0);
  const A to_mu = -expm1(-t) * inverse_b0, t_finite = smaller(t, huge<A>());
  return {d < 0 ? -to_mu : to_mu, expm1(r + (log1p(t_finite) - t_finite)) * static_cast<A>(0.5),
          (expm1(r) + spread) * static_cast<A>(-0.5)};
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
          kl += a.family == Family::laplace ? laplace_kl(delta, h, prior_h) : normal_kl(delta, h, prior_h);
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
        const Gradient<A> g = a.family == Family::laplace ? laplace_kl_gradient(delta, h, prior_h)
                                                          : normal_kl_gradient(delta, h, prior_h);
        mu[i] = grad_kl * g.mu;
        logvar[i] = grad_kl * g.logvar;
        prior_mu[i] = -mu[i];
        prior_logvar[i] = grad_kl * g.prior_logvar;
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
