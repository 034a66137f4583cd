// The product of a row's observed experts: precisions add, means are averaged by precision.
//
// Precisions are scaled by the largest one, weight included (as a softmax is), so logvar in [-100, 100] and +inf give
// finite results.
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

// An expert's factor on its precision, [M, D] or none. One of weight 0 says nothing, but is no mask: its NaN comes out.
// A weight that is negative or not finite counts as NaN.
template <class T, bool given>
struct Weights {
  const T* data;
  int64_t dim;
  using V = Vec<T>;

  MMVAE_INLINE V as_given(int expert, int64_t d, int lanes) const { return load(data + expert * dim + d, lanes); }
  MMVAE_INLINE V of(int expert, int64_t d, int lanes) const {
    const V w = as_given(expert, d, lanes);
    return (w >= V{}) & (w <= splat<V>(Constants<T>::largest)) ? w : splat<V>(static_cast<T>(NAN));
  }
  // A log-variance with the weight in it, to within 0.07: good enough for the scale of the precisions.
  static MMVAE_INLINE V rough_logvar(V weight, V logvar) {
    return weight == V{} ? splat<V>(Constants<T>::huge)
                         : fma(rough_log2(weight), static_cast<T>(-0.6931471805599453), logvar);
  }
  // weight * e^x, also where e^x alone is beyond the type; 0 at weight 0
  static MMVAE_INLINE V times_exp(V weight, V x) {
    const V root = exp_within_range(x * static_cast<T>(0.5));
    return weight * root * root;
  }
};

// Joint mean and log-variance of dims [d, d + n) of the row; f(i, lanes, Moments) gets them vector by vector.
// Experts are read a group of vectors at a time, not vector by vector (twenty short streams whose addresses share their
// low bits defeat caches and prefetchers) and not a long run at a time (then the sums would live in memory).
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
  for_groups<S>(n, [&](int64_t group, int lanes, auto vectors) __attribute__((always_inline)) {
    constexpr int U = decltype(vectors)::count;
    V shift[U], total[U], weighted_mean[U];
    // the smallest log-variance; at most `huge`, so that inf - inf cannot happen
    for (int u = 0; u < U; ++u) shift[u] = splat<V>(prior ? T(0) : C::huge);
    for (int m = 0; m < row.count; ++m) {
      const S* logvar = row.logvar[m] + d + group;
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const int i = u * kLanes<S>;
        V own = load(logvar + i, lanes);
        if constexpr (weighted)
          own = weights.rough_logvar(weights.as_given(row.expert[m], first_dim + d + group + i, lanes), own);
        shift[u] = smaller(own, shift[u]);
      }
    }
    for (int u = 0; u < U; ++u) {
      total[u] = prior ? exp_of_negative(shift[u]) : V{};
      weighted_mean[u] = V{};
    }
    for (int m = 0; m < row.count; ++m) {
      const S *mu = row.mu[m] + d + group, *logvar = row.logvar[m] + d + group;
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const int i = u * kLanes<S>;
        const V ratio = shift[u] - load(logvar + i, lanes);
        V precision;
        if constexpr (weighted) {
          precision = weights.times_exp(weights.of(row.expert[m], first_dim + d + group + i, lanes), ratio);
        } else {
          precision = exp_of_negative(ratio);
        }
        total[u] += precision;
        weighted_mean[u] = fma(precision, load(mu + i, lanes), weighted_mean[u]);
      }
    }
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const auto silent = total[u] == V{};  // only experts that say nothing (logvar = +inf)
      const V safe = silent ? splat<V>(1) : total[u];
      const V logvar = silent ? splat<V>(static_cast<T>(INFINITY)) : shift[u] - log(safe);
      f(group + u * kLanes<S>, lanes, Moments<V>{weighted_mean[u] / safe, logvar});
    }
  });
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
