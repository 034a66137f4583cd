// The product of a row's observed experts: precisions add, means are averaged by precision.
//
// Precisions are scaled by the largest one (as a softmax is), so logvar in [-100, 100] and +inf give finite results.
#pragma once

#include "../kernels.h"
#include "sample_backward.h"

namespace mmvae {
namespace MMVAE_ISA {

// The experts observed in one row, in order. A masked-out expert's memory is never touched.
template <class S>
struct Observed {
  int count = 0;
  int expert[kMaxExperts];
  const S* mu[kMaxExperts];
  const S* logvar[kMaxExperts];

  MMVAE_INLINE Observed(const Experts<S>& experts, int64_t row, int64_t dim_begin) {
    for (int m = 0; m < experts.count; ++m) {
      if (!experts.mask.observed(row, m)) continue;
      expert[count] = m;
      mu[count] = experts.mu[m].row(row) + dim_begin;
      logvar[count] = experts.logvar[m].row(row) + dim_begin;
      ++count;
    }
  }
};

// An expert's factor on its precision, [M, D] or none. One of weight 0 says nothing, whatever its log-variance.
template <class T, bool given>
struct Weights {
  const T* data;
  int64_t dim;
  using V = Vec<T>;

  MMVAE_INLINE V of(int expert, int64_t d, int lanes) const {
    return given ? load(data + expert * dim + d, lanes) : splat<V>(1);
  }
  MMVAE_INLINE V apply(V weight, V precision) const {
    if (!given) return precision;
    return weight == V{} ? V{} : weight * precision;
  }
};

// Joint mean and log-variance of dims [d, d + n) of the row, n <= kRun; f(i, lanes, Moments) gets them vector by
// vector. Dimensions are taken run by run and within a run expert after expert: a few long streams at a time, which
// caches and prefetchers handle far better than twenty short ones whose addresses often share their low bits.
// `first_dim` is where in the weights the row's pointers begin.
template <class S, bool weighted, class F>
static MMVAE_INLINE void product(const Observed<S>& row, const Weights<Arithmetic<S>, weighted>& weights,
                                 int64_t first_dim, bool prior, int64_t d, int64_t n, F f) {
  using T = Arithmetic<S>;
  using V = Vec<S>;
  using C = Constants<T>;
  if (row.count == 0) {
    for_lanes<S>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) { f(i, lanes, Moments<V>{V{}, V{}}); });
    return;
  }
  Run<T> shift, total, weighted_mean;
  // the smallest log-variance; at most `huge`, so that inf - inf cannot happen
  for (int m = 0; m < row.count; ++m) {
    const S* logvar = row.logvar[m] + d;
    for_lanes<S>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      const V before = m > 0 ? load(shift.values + i) : splat<V>(prior ? T(0) : C::huge);
      V own = load(logvar + i, lanes);
      if (weighted) own = weights.of(row.expert[m], first_dim + d + i, lanes) == V{} ? splat<V>(C::huge) : own;
      store(shift.values + i, smaller(own, before));
    });
  }
  for (int m = 0; m < row.count; ++m) {
    const S *mu = row.mu[m] + d, *logvar = row.logvar[m] + d;
    for_lanes<S>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      const V s = load(shift.values + i);
      const V precision =
          weights.apply(weights.of(row.expert[m], first_dim + d + i, lanes), exp(s - load(logvar + i, lanes)));
      const V sum_before = m > 0 ? load(total.values + i) : prior ? exp(s) : V{};
      const V mean_before = m > 0 ? load(weighted_mean.values + i) : V{};
      store(total.values + i, sum_before + precision);
      store(weighted_mean.values + i, fma(precision, load(mu + i, lanes), mean_before));
    });
  }
  for_lanes<S>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    const V sum = load(total.values + i);
    const auto silent = sum == V{};  // only experts that say nothing (logvar = +inf)
    const V safe = silent ? splat<V>(1) : sum;
    const V logvar = silent ? splat<V>(static_cast<T>(INFINITY)) : load(shift.values + i) - log(safe);
    f(i, lanes, Moments<V>{load(weighted_mean.values + i) / safe, logvar});
  });
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
