// The product of a row's observed experts: precisions add, means are averaged by precision.
#pragma once

#include "device.cuh"

namespace mmvae {
namespace cuda {

// Experts whose loads are under way together: as many as 32 registers hold.
template <class S>
constexpr int kAhead = 128 / (kPack<S> * static_cast<int>(sizeof(Arithmetic<S>)) * 2);

// Calls f(expert, mu, logvar) with the packs at dimension d of every observed expert, in order. A masked-out expert's
// memory is never touched.
template <int N, class S, class F>
MMVAE_DEVICE void for_observed(const Experts<S>& experts, int64_t row, int64_t d, int64_t n, F f) {
  using A = Arithmetic<S>;
  constexpr int ahead = kAhead<S>;
  for (int first = 0; first < experts.count; first += ahead) {
    Pack<A, N> mu[ahead], logvar[ahead];
    bool observed[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i) observed[i] = first + i < experts.count && experts.mask.observed(row, first + i);
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      if (!observed[i]) continue;
      mu[i] = load<N>(experts.mu[first + i].row(row) + d, n);
      logvar[i] = load<N>(experts.logvar[first + i].row(row) + d, n);
    }
#pragma unroll
    for (int i = 0; i < ahead; ++i)
      if (observed[i]) f(first + i, mu[i], logvar[i]);
  }
}

template <class S>
MMVAE_DEVICE bool any_observed(const Experts<S>& experts, int64_t row) {
  if (experts.mask.data == nullptr) return experts.count > 0;
  bool any = false;
  for (int m = 0; m < experts.count; ++m) any |= experts.mask.observed(row, m);
  return any;
}

// One dimension's product, expert by expert: precisions are scaled by the largest so far, so that logvar in [-100, 100]
// and +inf give finite results. The prior comes first, where it takes part.
template <class A>
struct Product {
  A shift, total, weighted_mean;

  MMVAE_HD static Product start(bool prior) {
    return {prior ? A(0) : static_cast<A>(sizeof(A) == 4 ? 1e30 : 1e300), prior ? A(1) : A(0), A(0)};
  }

  __device__ __forceinline__ void multiply(A mu, A logvar) {
    const A ratio = exp(-magnitude(logvar - shift));
    const bool largest = logvar < shift;
    const A own = largest ? A(1) : ratio, before = largest ? ratio : A(1);
    total = total * before + own;
    weighted_mean = weighted_mean * before + own * mu;
    shift = largest ? logvar : shift;
  }

  // Where only experts spoke that say nothing (logvar = +inf) it is as uninformative as they are.
  __device__ __forceinline__ Moments<A> moments() const {
    const bool silent = total == 0;
    const A safe = silent ? A(1) : total;
    return {weighted_mean / safe, silent ? infinity<A>() : shift - log(safe)};
  }
};

// The log-variances of an expert whose precisions are weighted: +inf at weight 0. NaN for a weight that is negative or
// not finite.
template <class A, int N>
MMVAE_DEVICE Pack<A, N> weighted_logvar(Pack<A, N> logvar, const Pack<A, N>& weight) {
#pragma unroll
  for (int i = 0; i < N; ++i) logvar[i] = logvar[i] - log(weight[i]) + (weight[i] - weight[i]);
  return logvar;
}

// The product's moments over a pack; weights [M, D] or nullptr. The prior where nothing is observed.
template <int N, class S>
MMVAE_DEVICE void product_of(const Experts<S>& experts, const Arithmetic<S>* weights, bool prior, bool any, int64_t row,
                             int64_t dim, int64_t d, int64_t n, Pack<Arithmetic<S>, N>& mu,
                             Pack<Arithmetic<S>, N>& logvar) {
  using A = Arithmetic<S>;
  Product<A> product[N];
#pragma unroll
  for (int i = 0; i < N; ++i) product[i] = Product<A>::start(prior || !any);
  for_observed<N>(experts, row, d, n, [&](int m, const Pack<A, N>& own_mu, const Pack<A, N>& own_logvar) {
    Pack<A, N> weighted = own_logvar;
    if (weights != nullptr) weighted = weighted_logvar(own_logvar, load<N>(weights + m * dim + d, n));
#pragma unroll
    for (int i = 0; i < N; ++i) product[i].multiply(own_mu[i], weighted[i]);
  });
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const Moments<A> joint = product[i].moments();
    mu[i] = joint.mu;
    logvar[i] = joint.logvar;
  }
}

}  // namespace cuda
}  // namespace mmvae
