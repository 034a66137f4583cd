// All subsets of a few experts with every sum in a register: the recursion over them is written out at compile time.
//
// The lattice of lattice.h serves any list of subsets, from memory; this serves the list that nearly everyone has, all
// 2^M - 1 of them, and a row's available ones are then all subsets of its observed experts.
#pragma once

#include "lattice.h"

namespace mmvae {
namespace MMVAE_ISA {

constexpr int kMaxPowerSet = 5;  // experts: the code doubles with every one

// One vector of dimensions of each of N experts, and the precision that the prior adds to the subset of all of them.
template <int N, class V>
struct PowerSet {
  Natural<V> expert[N];
  V prior;

  template <class T>
  MMVAE_INLINE PowerSet(const Sums<T>& sums, const int32_t* slot, int64_t i, V prior_) : prior(prior_) {
    MMVAE_UNROLL
    for (int m = 0; m < N; ++m) {
      const T* own = sums.precision(slot[m]);
      expert[m] = {load(own + i), load(own + sums.block + i)};
    }
  }

  // visit(q) for every subset of two experts or more, q = its sums.
  template <class F>
  MMVAE_INLINE void climb(F visit) const {
    climb_from<0, 0>(*this, Natural<V>{V{}, V{}}, visit);
  }

  // The way back: adjoint(q) is the gradient to a subset's sums; `to_expert` receives what that means for each expert.
  template <class F>
  MMVAE_INLINE void descend(F adjoint, Natural<V> (&to_expert)[N]) const {
    for (Natural<V>& g : to_expert) g = {V{}, V{}};
    descend_from<0, 0>(*this, Natural<V>{V{}, V{}}, adjoint, to_expert);
  }

 private:
  static constexpr unsigned kEveryone = (1u << N) - 1;

  MMVAE_INLINE Natural<V> with(Natural<V> q, int m) const {
    return {q.precision + expert[m].precision, q.weighted_mean + expert[m].weighted_mean};
  }
  template <unsigned subset>
  MMVAE_INLINE Natural<V> and_prior(Natural<V> q) const {
    if constexpr (subset == kEveryone) q.precision += prior;
    return q;
  }

  // The subsets that add experts `next` and later to `subset`, whose sums are q.
  template <unsigned subset, int next, class F>
  static MMVAE_INLINE void climb_from(const PowerSet& e, Natural<V> q, F& visit) {
    if constexpr (next < N) {
      constexpr unsigned child = subset | 1u << next;
      Natural<V> sums = e.expert[next];
      if constexpr (subset != 0) {
        sums = e.with(q, next);
        visit(e.template and_prior<child>(sums));
      }
      climb_from<child, next + 1>(e, sums, visit);
      climb_from<subset, next + 1>(e, q, visit);
    }
  }

  // The same; returns the sum of their adjoints, which is what they mean for `subset`.
  template <unsigned subset, int next, class F>
  static MMVAE_INLINE Natural<V> descend_from(const PowerSet& e, Natural<V> q, F& adjoint, Natural<V> (&to_expert)[N]) {
    static_assert(next < N, "a subset without further experts has no descendants");
    constexpr unsigned child = subset | 1u << next;
    constexpr bool last = next == N - 1;
    Natural<V> sums = e.expert[next], g{V{}, V{}};
    if constexpr (subset != 0) {
      sums = e.with(q, next);
      g = adjoint(e.template and_prior<child>(sums));
    }
    if constexpr (!last) {
      const Natural<V> below = descend_from<child, next + 1>(e, sums, adjoint, to_expert);
      g = {g.precision + below.precision, g.weighted_mean + below.weighted_mean};
    }
    to_expert[next].precision += g.precision;
    to_expert[next].weighted_mean += g.weighted_mean;
    if constexpr (!last) {
      const Natural<V> others = descend_from<subset, next + 1>(e, q, adjoint, to_expert);
      g = {g.precision + others.precision, g.weighted_mean + others.weighted_mean};
    }
    return g;
  }
};

// f(N) with the number of a row's observed experts as a constant; 1 has no subset of several.
template <class F>
static MMVAE_INLINE void with_count(int count, F f) {
  switch (count) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 3:
      return f(std::integral_constant<int, 3>{});
    case 4:
      return f(std::integral_constant<int, 4>{});
    case 5:
      return f(std::integral_constant<int, 5>{});
    default:
      static_assert(kMaxPowerSet == 5, "a case for every number of experts");
  }
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
