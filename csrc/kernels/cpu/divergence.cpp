// KL( q || p ) of each row, for diagonal Gaussians and Laplace distributions. Scales are e^(logvar / 2).
//
// Floor: 8 bytes an element forward, 16 backward, 8 more with a prior of its own for every row. With exp cheap it is
// bound by memory.
#include "../laplace.h"
#include "math.h"
#include "ops.h"

namespace mmvae {
namespace MMVAE_ISA {

// q measured in units of p: its mean's distance in scales of p, and log(scale of q / scale of p).
template <class V>
struct Relative {
  V distance, log_ratio;
  V inverse_scale;              // of p
  V plain_distance, log_scale;  // of q, in no units
};

template <class S>
struct Row {
  const S *mu, *logvar, *prior_mu, *prior_logvar;
};

template <bool with_prior, class S>
static MMVAE_INLINE Relative<Vec<S>> relative(const Row<S>& row, int64_t i, int n) {
  using V = Vec<S>;
  using T = Arithmetic<S>;
  V d = load(row.mu + i, n), inverse_scale = splat<V>(1);
  const V logvar = load(row.logvar + i, n);
  V distance = d, relative_logvar = logvar;
  if (with_prior) {
    if (row.prior_mu != nullptr) distance = d = d - load(row.prior_mu + i, n);
    if (row.prior_logvar != nullptr) {
      const V prior = load(row.prior_logvar + i, n);
      inverse_scale = exp(prior * static_cast<T>(-0.5));
      relative_logvar -= prior;
      distance *= inverse_scale;
    }
  }
  const T half = static_cast<T>(0.5);
  return {distance, relative_logvar * half, inverse_scale, d, logvar * half};
}

template <class T>
struct Gaussian {
  using V = Vec<T>;
  static MMVAE_INLINE V kl(const Relative<V>& q) { return kl_to_standard(q.distance, exp_and_tail(q.log_ratio)); }
  static MMVAE_INLINE DivergenceGrads<V> grads(const Relative<V>& q, V grad_kl) {
    const V variance_ratio_minus_1 = exp_minus_1(q.log_ratio + q.log_ratio);
    const Moments<V> g = kl_adjoint(grad_kl, q.distance, variance_ratio_minus_1);
    return {g.mu * q.inverse_scale, g.logvar, -g.logvar - g.mu * q.distance * static_cast<T>(0.5)};
  }
};

template <class T>
struct LaplaceDistribution {
  using V = Vec<T>;
  static MMVAE_INLINE LaplacePair<V> pair(const Relative<V>& q) {
    const V t = magnitude(q.plain_distance) * exp(-q.log_scale);
    const ExpAndTail<V> ratio = exp_and_tail(q.log_ratio);
    return {magnitude(q.distance), t, ratio, smaller(splat<V>(Constants<T>::largest), ratio.value), exp_and_tail(-t)};
  }
  static MMVAE_INLINE V kl(const Relative<V>& q) { return laplace_kl(pair(q)); }
  static MMVAE_INLINE DivergenceGrads<V> grads(const Relative<V>& q, V grad_kl) {
    return laplace_kl_adjoint(grad_kl, q.plain_distance, q.inverse_scale, pair(q));
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
