// KL( q || p ) of each row, for diagonal Gaussians and Laplace distributions. Scales are e^(logvar / 2).
//
// Floor: 8 bytes an element forward, 16 backward, 8 more with a prior of its own for every row. With exp cheap it is
// bound by memory.
#include "../gaussian.h"
#include "math.h"
#include "ops.h"

namespace mmvae {
namespace MMVAE_ISA {

// q measured in units of p: its mean's distance in scales of p, and log(scale of q / scale of p).
template <class V>
struct Relative {
  V distance, log_ratio;
  V inverse_scale;  // of p
};

template <class S>
struct Row {
  const S *mu, *logvar, *prior_mu, *prior_logvar;
};

template <bool with_prior, class S>
static MMVAE_INLINE Relative<Vec<S>> relative(const Row<S>& row, int64_t i, int n) {
  using V = Vec<S>;
  using T = Arithmetic<S>;
  V mu = load(row.mu + i, n), logvar = load(row.logvar + i, n), inverse_scale = splat<V>(1);
  if (with_prior) {
    if (row.prior_mu != nullptr) mu -= load(row.prior_mu + i, n);
    if (row.prior_logvar != nullptr) {
      const V prior = load(row.prior_logvar + i, n);
      inverse_scale = exp(prior * static_cast<T>(-0.5));
      logvar -= prior;
      mu *= inverse_scale;
    }
  }
  return {mu, logvar * static_cast<T>(0.5), inverse_scale};
}

template <class V>
struct DivergenceGrads {
  V mu, logvar, prior_logvar;  // prior_mu's is -mu's
};

template <class T>
struct Gaussian {
  using V = Vec<T>;
  static MMVAE_INLINE V kl(const Relative<V>& q) {
    return kl_to_standard(q.distance, q.log_ratio, exp_and_tail(q.log_ratio).minus_1_minus_x);
  }
  static MMVAE_INLINE DivergenceGrads<V> grads(const Relative<V>& q, V grad_kl) {
    const V variance_ratio_minus_1 = exp_minus_1(q.log_ratio + q.log_ratio);
    const Moments<V> g = kl_adjoint(grad_kl, q.distance, variance_ratio_minus_1);
    return {g.mu * q.inverse_scale, g.logvar, -g.logvar - g.mu * q.distance * static_cast<T>(0.5)};
  }
};

// With a = |mu - mu_p| / b_p, r = b_q / b_p and t = a / r: KL = r (t + e^-t - 1) + (r - 1 - log r), both never
// negative. Below t = 1 the tails e^x - 1 - x keep every difference exact; above, t may overflow but a does not.
template <class T>
struct LaplaceDistribution {
  using V = Vec<T>;
  static MMVAE_INLINE V kl(const Relative<V>& q) {
    const V a = magnitude(q.distance), t = a * exp(-q.log_ratio);
    const ExpAndTail<V> r = exp_and_tail(q.log_ratio), e = exp_and_tail(-t);
    return (t < splat<V>(1) ? r.value * e.minus_1_minus_x : a + r.value * (e.value - 1)) + r.minus_1_minus_x;
  }
  static MMVAE_INLINE DivergenceGrads<V> grads(const Relative<V>& q, V grad_kl) {
    const V a = magnitude(q.distance), t = a * exp(-q.log_ratio);
    const auto near = t < splat<V>(1);
    const ExpAndTail<V> e = exp_and_tail(-t);
    const V r = exp(q.log_ratio), r_minus_1 = exp_minus_1(q.log_ratio), tail = e.minus_1_minus_x;
    const V slope = near ? t - tail : 1 - e.value;  // 1 - e^-t
    const V mu = (q.distance < V{} ? -slope : slope) * q.inverse_scale;
    // r (1 + t) e^-t - 1 and r (t + e^-t) - 1
    const V bounded = t < splat<V>(1000) ? t : splat<V>(1000);
    const V own = near ? r_minus_1 + r * (tail * (1 + t) - t * t) : r * (1 + bounded) * e.value - 1;
    const V prior = near ? r_minus_1 + r * tail : a + r * e.value - 1;
    const V half = grad_kl * static_cast<T>(0.5);
    return {q.distance == V{} ? V{} : grad_kl * mu, half * own, -half * prior};
  }
};

template <class S>
static MMVAE_INLINE Row<S> row_of(const Rows<const S>& mu, const Rows<const S>& logvar, const Rows<const S>& prior_mu,
                                  const Rows<const S>& prior_logvar, int64_t r) {
  return {mu.row(r), logvar.row(r), prior_mu.data == nullptr ? nullptr : prior_mu.row(r),
          prior_logvar.data == nullptr ? nullptr : prior_logvar.row(r)};
}

template <class F, bool with_prior, class S>
static void forward(const Divergence<S>& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const Row<S> row = row_of(a.mu, a.logvar, a.prior_mu, a.prior_logvar, r);
    Vec<S> total{};
    for_lanes<S>(a.dim, [&](int64_t i, int n) __attribute__((always_inline)) {
      total += F::kl(relative<with_prior>(row, i, n));  // lanes past the end are 0: KL 0
    });
    a.kl[r] = sum(total);
  }
}

template <class F, bool with_prior, class S>
static void backward(const DivergenceBackward<S>& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const Row<S> row = row_of(a.mu, a.logvar, a.prior_mu, a.prior_logvar, r);
    const Vec<S> grad_kl = splat<Vec<S>>(a.grad_kl[r]);
    const int64_t at = r * a.dim;
    for_lanes<S>(a.dim, [&](int64_t i, int n) __attribute__((always_inline)) {
      const DivergenceGrads<Vec<S>> g = F::grads(relative<with_prior>(row, i, n), grad_kl);
      store(a.grad_mu + at + i, g.mu, n);
      store(a.grad_logvar + at + i, g.logvar, n);
      if (with_prior && a.grad_prior_mu != nullptr) store(a.grad_prior_mu + at + i, -g.mu, n);
      if (with_prior && a.grad_prior_logvar != nullptr) store(a.grad_prior_logvar + at + i, g.prior_logvar, n);
    });
  }
}

template <class S>
void divergence(const Divergence<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  const bool with_prior = a.prior_mu.data != nullptr || a.prior_logvar.data != nullptr;
  if (a.family == Family::laplace) {
    with_prior ? forward<LaplaceDistribution<T>, true>(a, begin, end)
               : forward<LaplaceDistribution<T>, false>(a, begin, end);
  } else {
    with_prior ? forward<Gaussian<T>, true>(a, begin, end) : forward<Gaussian<T>, false>(a, begin, end);
  }
}

template <class S>
void divergence_backward(const DivergenceBackward<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  const bool with_prior = a.prior_mu.data != nullptr || a.prior_logvar.data != nullptr;
  if (a.family == Family::laplace) {
    with_prior ? backward<LaplaceDistribution<T>, true>(a, begin, end)
               : backward<LaplaceDistribution<T>, false>(a, begin, end);
  } else {
    with_prior ? backward<Gaussian<T>, true>(a, begin, end) : backward<Gaussian<T>, false>(a, begin, end);
  }
}

MMVAE_FOR_EVERY_TYPE(divergence, Divergence)
MMVAE_FOR_EVERY_TYPE(divergence_backward, DivergenceBackward)

}  // namespace MMVAE_ISA
}  // namespace mmvae
