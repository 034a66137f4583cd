// Products of subsets of the experts. A thread takes one dimension at a time and forms every subset's sums anew from
// its members: plain sums of precisions where they are safe, else products that are scaled one by one.
#pragma once

#include "product.cuh"

namespace mmvae {
namespace cuda {

// Within |logvar| <= kSafe neither sums of precisions nor squared variances overflow, whatever the subset.
template <class A>
constexpr A kSafe = sizeof(A) == 4 ? 36 : 300;

template <class S>
MMVAE_DEVICE int64_t observed_experts(const Experts<S>& experts, int64_t row) {
  if (experts.mask.data == nullptr) return (int64_t{1} << experts.count) - 1;
  int64_t bits = 0;
  for (int m = 0; m < experts.count; ++m) bits |= static_cast<int64_t>(experts.mask.observed(row, m)) << m;
  return bits;
}

struct Subset {
  int64_t members;
  bool prior;  // whether the prior expert sits in it
  // A subset of one expert: its posterior is that expert, whose own moments are more accurate than the sums'.
  MMVAE_HD bool lone() const { return !prior && (members & (members - 1)) == 0; }
  MMVAE_HD bool available(int64_t observed) const { return (members & ~observed) == 0; }
};

MMVAE_DEVICE Subset subset_of(const SubsetList& subsets, int64_t members) {
  return {members, subsets.has_prior(members)};
}
MMVAE_DEVICE Subset listed_subset(const SubsetList& subsets, int64_t index) {
  return subset_of(subsets, subsets.members(index));
}

template <class A>
struct Posterior {
  A mu, logvar, sd;
};

// KL( posterior || N(0, 1) ).
template <class A>
MMVAE_DEVICE A kl_of(const Posterior<A>& q) {
  const A h = q.logvar * static_cast<A>(0.5), tail = exp_tail(h, q.sd);
  return kl_to_standard(q.mu, ExpAndTail<A>{q.sd, h < -1 ? q.sd - 1 : h + tail, tail});
}

// The gradients of a loss to a posterior's moments: through its KL, and through a sample of it.
template <class R, class A>
MMVAE_DEVICE Moments<R> of_kl(const Posterior<R>& q, A grad_kl) {
  return kl_adjoint(static_cast<R>(grad_kl), q.mu, expm1(q.logvar));
}
template <class R, class A>
MMVAE_DEVICE Moments<R> of_sample(const Posterior<R>& q, A grad_z, A eps) {
  return sample_adjoint(static_cast<R>(grad_z), q.sd * static_cast<R>(eps));
}

template <class A>
MMVAE_DEVICE Posterior<A> posterior_of_sums(A precision, A weighted_mean) {
  const A var = 1 / precision;
  return {weighted_mean * var, -log(precision), square_root(var)};
}

// That of a subset of one expert. Where that says nothing (logvar = +inf) its mean is 0, as a product's; NaN stays.
template <class S>
MMVAE_DEVICE Posterior<Arithmetic<S>> lone_posterior(const Experts<S>& experts, int64_t row, int64_t d,
                                                     int64_t members) {
  using A = Arithmetic<S>;
  const int m = __ffsll(members) - 1;
  const A logvar = from_memory<S>(experts.logvar[m].row(row)[d]);
  const A mu = from_memory<S>(experts.mu[m].row(row)[d]);
  return {logvar == infinity<A>() ? mu - mu : mu, logvar, exp(logvar * static_cast<A>(0.5))};
}

// That of any subset, for any log-variances: in double, where its adjoints do not overflow either. It is seldom needed,
// and reads the members once more.
template <class S>
__device__ __noinline__ Posterior<double> exact_posterior(const Experts<S>& experts, int64_t row, int64_t d,
                                                          Subset subset) {
  Product<double> product = Product<double>::start(subset.prior);
  for (int m = 0; m < experts.count; ++m) {
    if (!(subset.members >> m & 1)) continue;
    product.multiply(from_memory<S>(experts.mu[m].row(row)[d]), from_memory<S>(experts.logvar[m].row(row)[d]));
  }
  const Moments<double> q = product.moments();
  return {q.mu, q.logvar, exp(q.logvar * 0.5)};
}

// The observed experts of a row at one dimension, up to kMax of them: in registers for a small kMax.
template <class S, int kMax>
struct ExpertTerms {
  using A = Arithmetic<S>;
  static constexpr int kUnroll = kMax <= 16 ? kMax : 1;
  A mu[kMax], logvar[kMax], precision[kMax];  // a missing one has precision 0
  bool safe = true;

  __device__ __forceinline__ ExpertTerms(const Experts<S>& experts, int64_t observed, int64_t row, int64_t d) {
#pragma unroll kUnroll
    for (int m = 0; m < kMax; ++m) {
      mu[m] = logvar[m] = precision[m] = 0;
      if (!(observed >> m & 1)) continue;
      mu[m] = from_memory<S>(experts.mu[m].row(row)[d]);
      logvar[m] = from_memory<S>(experts.logvar[m].row(row)[d]);
    }
#pragma unroll kUnroll
    for (int m = 0; m < kMax; ++m) {
      if (!(observed >> m & 1)) continue;
      precision[m] = exp(-logvar[m]);
      safe = safe && magnitude(logvar[m]) <= kSafe<A>;
    }
  }

  // Calls f with the subset's posterior, a Posterior<A> or Posterior<double>.
  template <class F>
  __device__ __forceinline__ void posterior(const Experts<S>& experts, int64_t row, int64_t d, Subset subset,
                                            F f) const {
    if (subset.lone()) {
      f(lone_posterior(experts, row, d, subset.members));
    } else if (safe) {
      A total = subset.prior ? 1 : 0, weighted_mean = 0;
#pragma unroll kUnroll
      for (int m = 0; m < kMax; ++m) {
        const A own = subset.members >> m & 1 ? precision[m] : A(0);
        total += own;
        weighted_mean += own * mu[m];
      }
      f(posterior_of_sums(total, weighted_mean));
    } else {
      f(exact_posterior(experts, row, d, subset));
    }
  }
};

// The gradients of the experts, summed over subsets.
template <class S, int kMax>
struct TermGradients {
  using A = Arithmetic<S>;
  static constexpr int kUnroll = ExpertTerms<S, kMax>::kUnroll;
  A mu[kMax], logvar[kMax];

  __device__ __forceinline__ TermGradients() {
#pragma unroll kUnroll
    for (int m = 0; m < kMax; ++m) mu[m] = logvar[m] = 0;
  }

  // What gradients of one subset's posterior q mean for its members.
  template <class R>
  __device__ __forceinline__ void add(const ExpertTerms<S, kMax>& x, const Subset& subset, const Posterior<R>& q,
                                      const Moments<R>& grad) {
#pragma unroll kUnroll
    for (int m = 0; m < kMax; ++m) {
      if (!(subset.members >> m & 1)) continue;
      const R own_mu = x.mu[m], own_logvar = x.logvar[m];
      const R share = x.safe ? x.precision[m] * (q.sd * q.sd) : exp(smaller(q.logvar, huge<R>()) - own_logvar);
      if (share == 0) continue;  // no share, no gradient, even where the posterior's is infinite
      const Moments<R> g = expert_adjoint(share, grad.mu, grad.logvar, own_mu, q.mu);
      mu[m] += static_cast<A>(g.mu);
      logvar[m] += static_cast<A>(g.logvar);
    }
  }

  __device__ __forceinline__ void store(const ExpertGrads<S>& out, int count, int64_t row, int64_t d) const {
#pragma unroll kUnroll
    for (int m = 0; m < kMax; ++m) {
      if (m >= count) continue;
      out.mu_row(m, row)[d] = to_memory<S>(mu[m]);
      out.logvar_row(m, row)[d] = to_memory<S>(logvar[m]);
    }
  }
};

// Calls f(d) for this thread's dimensions of a row.
template <class F>
MMVAE_DEVICE void for_dims(int64_t dim, int team, int lane, F f) {
  for (int64_t d = lane; d < dim; d += team) f(d);
}

}  // namespace cuda
}  // namespace mmvae
