// The algebra of diagonal Gaussian experts, one dimension at a time, written once.
//
// V is a scalar (CUDA thread, CPU fallback) or a SIMD vector: only + - * / are used. T = precision = e^-logvar.
#pragma once

#include "platform.h"

namespace mmvae {
namespace MMVAE_ISA {

// e^x, e^x - 1 and e^x - 1 - x, each to its full relative accuracy, also near x = 0.
template <class V>
struct ExpAndTail {
  V value, minus_1, minus_1_minus_x;
};

// KL( N(mu, e^(2h)) || N(0, 1) ) = 1/2 (mu^2 + e^(2h) - 1 - 2h), from g = e^h - 1 - h and e = e^h - 1, h = logvar / 2.
// e^(2h) - 1 - 2h = 2g + e^2, a sum of non-negative terms: no cancellation near the prior.
template <class V>
static MMVAE_HD V kl_to_standard(V mu, const ExpAndTail<V>& of_h) {
  const V g = of_h.minus_1_minus_x, e = of_h.minus_1;
  return mu * (mu * 0.5f) + (g + e * (e * 0.5f));  // halved first: finite wherever the result is
}

// Gradients of (z, kl) with respect to the mean and log-variance of the Gaussian they came from; z = mu + sd * eps.
template <class V>
struct Moments {
  V mu, logvar;
};

template <class V>
static MMVAE_HD Moments<V> sample_adjoint(V grad_z, V sd_eps) {
  return {grad_z, grad_z * sd_eps * 0.5f};
}

template <class V>
static MMVAE_HD Moments<V> kl_adjoint(V grad_kl, V mu, V variance_minus_1) {
  return {grad_kl * mu, grad_kl * variance_minus_1 * 0.5f};
}

// One expert's share of the gradient of a product: w = T_m / sum T, the joint mean's derivative to mu_m.
template <class V>
static MMVAE_HD Moments<V> expert_adjoint(V w, V grad_mu, V grad_logvar, V mu, V joint_mu) {
  return {w * grad_mu, w * (grad_logvar - grad_mu * (mu - joint_mu))};
}

// A subset's posterior in natural form: T = sum of precisions, P = sum of precision * mean; var = 1 / T, mean = P / T.
template <class V>
struct Natural {
  V precision, weighted_mean;
};

// d/d(T, P) of 1/2 (mean^2 + var - 1 + log T), the subset's KL to N(0, 1).
template <class V>
static MMVAE_HD Natural<V> natural_kl_adjoint(V grad_kl, V mean, V var) {
  return {grad_kl * var * (0.5f - var * 0.5f - mean * mean), grad_kl * mean * var};
}

// From natural adjoints back to one expert's mean and log-variance.
template <class V>
static MMVAE_HD Moments<V> natural_to_expert(V precision, V mu, V adj_precision, V adj_weighted_mean) {
  return {precision * adj_weighted_mean, -precision * (adj_precision + mu * adj_weighted_mean)};
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
