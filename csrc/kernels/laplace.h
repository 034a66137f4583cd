// The KL of Laplace distributions, one dimension at a time, written once; V as in gaussian.h.
//
// q = Laplace(mu, b), p = Laplace(mu_p, b_p), d = mu - mu_p, a = |d| / b_p, t = |d| / b and r = b / b_p:
// KL = r (t + e^-t - 1) + (r - 1 - log r), both never negative. Below t = 1 the tails e^x - 1 - x keep every difference
// exact; above, t may overflow but a does not.
#pragma once

#include "gaussian.h"

namespace mmvae {
namespace MMVAE_ISA {

template <class V>
struct LaplacePair {
  V a, t;
  ExpAndTail<V> ratio;  // of log r
  V finite_ratio;       // r, or the largest number of the type: times a tail of 0 it has to be 0
  ExpAndTail<V> decay;  // of -t
};

template <class V>
static MMVAE_HD V laplace_kl(const LaplacePair<V>& q) {
  const V near = q.finite_ratio * q.decay.minus_1_minus_x, far = q.a + q.finite_ratio * q.decay.minus_1;
  return (q.t < V{} + 1 ? near : far) + q.ratio.minus_1_minus_x;
}

template <class V>
struct DivergenceGrads {
  V mu, logvar, prior_logvar;  // prior_mu's is -mu's
};

template <class V>
static MMVAE_HD DivergenceGrads<V> laplace_kl_adjoint(V grad_kl, V d, V inverse_b_p, const LaplacePair<V>& q) {
  const auto near = q.t < V{} + 1;
  const V slope = d < V{} ? q.decay.minus_1 : -q.decay.minus_1;  // +-(1 - e^-t)
  const V t = q.t < V{} + 1000 ? q.t : V{} + 1000, tail = q.decay.minus_1_minus_x;
  // r (1 + t) e^-t - 1 and r (t + e^-t) - 1
  const V own = near ? q.ratio.minus_1 + q.finite_ratio * (tail * (1 + t) - t * t)
                     : q.finite_ratio * ((1 + t) * q.decay.value) - 1;
  const V prior = near ? q.ratio.minus_1 + q.finite_ratio * tail : q.a + q.finite_ratio * q.decay.value - 1;
  const V half = grad_kl * 0.5f;
  return {grad_kl * (slope * inverse_b_p), half * own, -half * prior};
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
