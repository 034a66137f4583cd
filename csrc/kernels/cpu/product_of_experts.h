// The product of a row's observed experts: precisions add, means are averaged by precision.
//
// Precisions are scaled by the largest one (as a softmax is), so logvar in [-100, 100] and +inf give finite results.
// Floor with M experts: 4 (2M + 2) bytes an element forward (3 with z), 4 (4M + 4) backward.
#pragma once

#include "../kernels.h"
#include "sample_backward.h"

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

// Dimensions are taken in runs, and within a run expert after expert: a few long streams at a time, which caches and
// prefetchers handle far better than twenty short ones whose addresses often share their low bits.
template <class T>
struct alignas(64) Run {
  T values[kRun];
};

// Joint mean and log-variance of dims [d, d + n) of the row, n <= kRun; f(i, lanes, Moments) gets them vector by
// vector.
template <class T, class F>
static MMVAE_INLINE void product(const Observed<T>& row, bool prior, int64_t d, int64_t n, F f) {
  using V = Vec<T>;
  using C = Constants<T>;
  if (row.count == 0) {
    for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) { f(i, lanes, Moments<V>{V{}, V{}}); });
    return;
  }
  Run<T> shift, total, weighted_mean;
  // the smallest log-variance; at most `huge`, so that inf - inf cannot happen
  for (int m = 0; m < row.count; ++m) {
    const T* logvar = row.logvar[m] + d;
    for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      const V before = m > 0 ? load(shift.values + i) : splat<V>(prior ? T(0) : C::huge);
      store(shift.values + i, smaller(load(logvar + i, lanes), before));
    });
  }
  for (int m = 0; m < row.count; ++m) {
    const T *mu = row.mu[m] + d, *logvar = row.logvar[m] + d;
    for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      const V s = load(shift.values + i);
      const V precision = exp(s - load(logvar + i, lanes));
      const V sum_before = m > 0 ? load(total.values + i) : prior ? exp(s) : V{};
      const V mean_before = m > 0 ? load(weighted_mean.values + i) : V{};
      store(total.values + i, sum_before + precision);
      store(weighted_mean.values + i, fma(precision, load(mu + i, lanes), mean_before));
    });
  }
  for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    const V sum = load(total.values + i);
    const auto silent = sum == V{};  // only experts that say nothing (logvar = +inf)
    const V safe = silent ? splat<V>(1) : sum;
    const V logvar = silent ? splat<V>(static_cast<T>(INFINITY)) : load(shift.values + i) - log(safe);
    f(i, lanes, Moments<V>{load(weighted_mean.values + i) / safe, logvar});
  });
}

template <class T>
static void product_of_experts(const PoE<T>& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const Observed<T> row(a.experts, r, 0);
    for_runs(a.dim, [&](int64_t d, int64_t n) {
      T *mu = a.mu + r * a.dim + d, *logvar = a.logvar + r * a.dim + d;
      product(row, a.prior, d, n,
              [&](int64_t i, int lanes, const Moments<Vec<T>>& joint) __attribute__((always_inline)) {
                store(mu + i, joint.mu, lanes);
                store(logvar + i, joint.logvar, lanes);
              });
    });
  }
}

// What the gradients of the joint (mu, logvar) mean for every expert; with samples, z and kl add to them first.
template <class T>
static void poe_backward(const PoEBackward<T>& a, int64_t begin, int64_t end) {
  using V = Vec<T>;
  using C = Constants<T>;
  Run<T> grad_mu_run, grad_logvar_run;
  const Samples<T> samples{a.grad_z, a.z, a.samples, a.rows, a.dim, a.seed};
  NoiseTile<T> noise;
  for (int64_t r = begin; r < end; ++r) {
    const Observed<T> row(a.experts, r, 0);
    for (int m = 0, k = 0; m < a.experts.count; ++m) {
      if (k < row.count && row.expert[k] == m) {
        ++k;
        continue;
      }
      memset(a.out.mu[m].row(r), 0, a.dim * sizeof(T));
      memset(a.out.logvar[m].row(r), 0, a.dim * sizeof(T));
    }
    if (row.count == 0) continue;
    const V grad_kl = splat<V>(a.grad_kl == nullptr ? T(0) : a.grad_kl[r]);
    for_runs(a.dim, [&](int64_t d, int64_t n) {
      const int64_t at = r * a.dim + d;
      const T *joint_mu = a.mu + at, *joint_logvar = a.logvar + at;
      for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
        const V mu = load(joint_mu + i, lanes);
        V grad_mu = a.grad_mu == nullptr ? V{} : load(a.grad_mu + at + i, lanes);
        V grad_logvar = a.grad_logvar == nullptr ? V{} : load(a.grad_logvar + at + i, lanes);
        if (a.grad_kl != nullptr) {
          const V logvar = load(joint_logvar + i, lanes);
          const Moments<V> g = kl_adjoint(grad_kl, mu, exp_and_tail(logvar).minus_1_minus_x + logvar);
          grad_mu += g.mu;
          grad_logvar += g.logvar;
        }
        store(grad_mu_run.values + i, grad_mu);
        store(grad_logvar_run.values + i, grad_logvar);
      });
      if (a.grad_z != nullptr)
        sample_adjoints(samples, r, d, n, joint_mu, joint_logvar, noise, /*add=*/true, grad_mu_run.values,
                        grad_logvar_run.values);
      for (int m = 0; m < row.count; ++m) {
        const T *mu = row.mu[m] + d, *logvar = row.logvar[m] + d;
        T *out_mu = a.out.mu[row.expert[m]].row(r) + d, *out_logvar = a.out.logvar[row.expert[m]].row(r) + d;
        for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
          const V joint = smaller(splat<V>(C::huge), load(joint_logvar + i, lanes));
          const V w = exp(joint - load(logvar + i, lanes));
          const Moments<V> g = expert_adjoint(w, load(grad_mu_run.values + i), load(grad_logvar_run.values + i),
                                              load(mu + i, lanes), load(joint_mu + i, lanes));
          const auto silent = w == V{};  // no share, no gradient, even where the joint's is infinite
          store(out_mu + i, silent ? V{} : g.mu, lanes);
          store(out_logvar + i, silent ? V{} : g.logvar, lanes);
        });
      }
    });
  }
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
