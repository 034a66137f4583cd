// The product of a row's observed experts: precisions add, means are averaged by precision.
//
// Precisions are scaled by the largest one (as a softmax is), so logvar in [-100, 100] and +inf give finite results.
// Floor with M experts: 4 (2M + 2) bytes an element forward (3 with z), 4 (4M + 1) backward.
#pragma once

#include "../gaussian.h"
#include "../kernels.h"
#include "noise.h"

namespace mmvae {
namespace MMVAE_ISA {

// The experts observed in one row, in order. A masked-out expert's memory is never touched.
template <class T>
struct Observed {
  int count = 0;
  int expert[kMaxExperts];
  const T* mu[kMaxExperts];
  const T* logvar[kMaxExperts];

  MMVAE_INLINE Observed(const Experts<T>& experts, int64_t row, int64_t dim_begin) {
    for (int m = 0; m < experts.count; ++m) {
      if (!experts.mask.observed(row, m)) continue;
      expert[count] = m;
      mu[count] = experts.mu[m].row(row) + dim_begin;
      logvar[count] = experts.logvar[m].row(row) + dim_begin;
      ++count;
    }
  }
};

template <class T>
static MMVAE_INLINE Moments<Vec<T>> product(const Observed<T>& row, bool prior, int64_t i, int n) {
  using V = Vec<T>;
  using C = Constants<T>;
  if (row.count == 0) return {V{}, V{}};
  V shift = prior ? V{} : splat<V>(C::huge);  // the smallest log-variance; finite, so that inf - inf cannot happen
  for (int m = 0; m < row.count; ++m) shift = smaller(load(row.logvar[m] + i, n), shift);
  V total = prior ? exp(shift) : V{}, weighted_mean{};
  for (int m = 0; m < row.count; ++m) {
    const V precision = exp(shift - load(row.logvar[m] + i, n));
    total += precision;
    weighted_mean = fma(precision, load(row.mu[m] + i, n), weighted_mean);
  }
  const auto silent = total == V{};  // only experts that say nothing (logvar = +inf)
  const V safe = silent ? splat<V>(1) : total;
  return {weighted_mean / safe, silent ? splat<V>(static_cast<T>(INFINITY)) : shift - log(safe)};
}

template <class T>
static void product_of_experts(const PoE<T>& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const Observed<T> row(a.experts, r, 0);
    for_lanes<T>(a.dim, [&](int64_t i, int n) __attribute__((always_inline)) {
      const Moments<Vec<T>> joint = product(row, a.prior, i, n);
      store(a.mu + r * a.dim + i, joint.mu, n);
      store(a.logvar + r * a.dim + i, joint.logvar, n);
    });
  }
}

// What the gradients of the joint (mu, logvar) mean for every expert; with samples, z and kl add to them first.
template <class T>
static void poe_backward(const PoEBackward<T>& a, int64_t begin, int64_t end) {
  using V = Vec<T>;
  using C = Constants<T>;
  for (int64_t r = begin; r < end; ++r) {
    const Observed<T> row(a.experts, r, 0);
    const V grad_kl = splat<V>(a.grad_kl == nullptr ? T(0) : a.grad_kl[r]);
    for (int m = 0, k = 0; m < a.experts.count; ++m) {
      if (k < row.count && row.expert[k] == m) {
        ++k;
        continue;
      }
      memset(a.out.mu_row(m, r), 0, a.dim * sizeof(T));
      memset(a.out.logvar_row(m, r), 0, a.dim * sizeof(T));
    }
    if (row.count == 0) continue;
    for_lanes<T>(a.dim, [&](int64_t i, int n) __attribute__((always_inline)) {
      const int64_t at = r * a.dim + i;
      const V mu = load(a.mu + at, n), logvar = load(a.logvar + at, n);
      V grad_mu = a.grad_mu == nullptr ? V{} : load(a.grad_mu + at, n);
      V grad_logvar = a.grad_logvar == nullptr ? V{} : load(a.grad_logvar + at, n);
      if (a.grad_kl != nullptr) {
        const Moments<V> g = kl_adjoint(grad_kl, mu, exp_and_tail(logvar).minus_1_minus_x + logvar);
        grad_mu += g.mu;
        grad_logvar += g.logvar;
      }
      if (a.grad_z != nullptr) {
        for (int64_t k = 0; k < a.samples; ++k) {
          const int64_t at_k = (k * a.out.rows + r) * a.dim + i;
          const Moments<V> g = sample_adjoint(load(a.grad_z + at_k, n), load(a.z + at_k, n), mu);
          grad_mu += g.mu;
          grad_logvar += g.logvar;
        }
      }
      const V joint_logvar = smaller(splat<V>(C::huge), logvar);
      for (int m = 0; m < row.count; ++m) {
        const V w = exp(joint_logvar - load(row.logvar[m] + i, n));
        const Moments<V> g = expert_adjoint(w, grad_mu, grad_logvar, load(row.mu[m] + i, n), mu);
        const auto silent = w == V{};  // no share, no gradient, even where the joint's is infinite
        store(a.out.mu_row(row.expert[m], r) + i, silent ? V{} : g.mu, n);
        store(a.out.logvar_row(row.expert[m], r) + i, silent ? V{} : g.logvar, n);
      }
    });
  }
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
