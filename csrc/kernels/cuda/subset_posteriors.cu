// Every listed subset's posterior and its KL to N(0, I).
//
// Forward, a team takes a row and a few subsets; what its experts hold comes from the cache for all but the first of
// them, and small batches fill the chip too. Backward, a team takes a row and all subsets.
#include "subsets.cuh"

namespace mmvae {
namespace cuda {

constexpr int kGroup = 8;  // subsets that are formed together

template <class S>
static __global__ void __launch_bounds__(kBlock)
    subset_posteriors(const __grid_constant__ SubsetPosteriors<S> a, int team) {
  using A = Arithmetic<S>;
  const int64_t groups = (a.subsets.listed + kGroup - 1) / kGroup;
  for_rows(a.rows * groups, team, [&](int64_t task, int lane, bool valid) {
    const int64_t row = task / groups, begin = task % groups * kGroup;
    Subset subset[kGroup] = {};
    A kl[kGroup] = {};
    int there = 0, lone = 0;  // of the group, as bits: available in this row; of one expert
    int64_t members = 0;
    const int64_t observed = valid ? observed_experts(a.experts, row) : 0;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (!valid || begin + j >= a.subsets.listed) continue;
      subset[j] = listed_subset(a.subsets, begin + j);
      const bool available = subset[j].available(observed);
      if (available) {
        there |= 1 << j;
        lone |= static_cast<int>(subset[j].lone()) << j;
        members |= subset[j].members;
      }
      if (lane == 0) a.available[(begin + j) * a.rows + row] = available;
    }
    for_dims(valid ? a.dim : 0, team, lane, [&](int64_t d) {
      A precision[kGroup], weighted_mean[kGroup];
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        precision[j] = subset[j].prior ? 1 : 0;
        weighted_mean[j] = 0;
      }
      bool safe = true;
      for (int m = 0; m < a.experts.count; ++m) {
        if (!(members >> m & 1)) continue;
        const A mu = from_memory<S>(a.experts.mu[m].row(row)[d]);
        const A logvar = from_memory<S>(a.experts.logvar[m].row(row)[d]);
        const A own = exp(-logvar), own_mean = own * mu;
        safe = safe && magnitude(logvar) <= kSafe<A>;
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          const bool member = subset[j].members >> m & 1;
          precision[j] += member ? own : A(0);
          weighted_mean[j] += member ? own_mean : A(0);
        }
      }
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        if (begin + j >= a.subsets.listed) continue;
        const int64_t at = ((begin + j) * a.rows + row) * a.dim + d;
        Posterior<A> q{0, 0, 1};
        if (there >> j & 1) {
          if (lone >> j & 1) {
            q = lone_posterior(a.experts, row, d, subset[j].members);
          } else if (safe) {
            q = posterior_of_sums(precision[j], weighted_mean[j]);
          } else {
            const Posterior<double> exact = exact_posterior(a.experts, row, d, subset[j]);
            q = {static_cast<A>(exact.mu), static_cast<A>(exact.logvar), static_cast<A>(exact.sd)};
          }
          kl[j] += kl_of(q);
        }
        a.mu[at] = to_memory<S>(q.mu);
        a.logvar[at] = to_memory<S>(q.logvar);
      }
    });
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const A total = team_sum(kl[j], team);
      if (valid && lane == 0 && begin + j < a.subsets.listed) a.kl[(begin + j) * a.rows + row] = total;
    }
  });
}

template <class S, int kMax>
static __global__ void __launch_bounds__(kBlock)
    subset_posteriors_backward(const __grid_constant__ SubsetPosteriorsBackward<S> a, int team) {
  using A = Arithmetic<S>;
  for_rows(a.rows, team, [&](int64_t row, int lane, bool valid) {
    if (!valid) return;
    const int64_t observed = observed_experts(a.experts, row);
    for_dims(a.dim, team, lane, [&](int64_t d) {
      const ExpertTerms<S, kMax> x(a.experts, observed, row, d);
      TermGradients<S, kMax> grads;
      for (int s = 0; s < a.subsets.listed; ++s) {
        const Subset subset = listed_subset(a.subsets, s);
        if (!subset.available(observed)) continue;
        const int64_t at = (s * a.rows + row) * a.dim + d;
        const A grad_mu = a.grad_mu == nullptr ? A(0) : from_memory<S>(a.grad_mu[at]);
        const A grad_logvar = a.grad_logvar == nullptr ? A(0) : from_memory<S>(a.grad_logvar[at]);
        const A grad_kl = a.grad_kl == nullptr ? A(0) : a.grad_kl[s * a.rows + row];
        x.posterior(a.experts, row, d, subset, [&](const auto& q) {
          auto g = of_kl(q, grad_kl);
          g.mu += grad_mu;
          g.logvar += grad_logvar;
          grads.add(x, subset, q, g);
        });
      }
      grads.store(a.out, a.experts.count, row, d);
    });
  });
}

template <class S>
static void start(const SubsetPosteriors<S>& a, cudaStream_t stream) {
  const int team = team_for(a.dim);
  const int64_t groups = (a.subsets.listed + kGroup - 1) / kGroup;
  start_kernel("subset_posteriors", subset_posteriors<S>, blocks_for(a.rows * groups, team), stream, a, team);
}

template <class S>
static void start(const SubsetPosteriorsBackward<S>& a, cudaStream_t stream) {
  const int team = team_for(a.dim);
  const auto kernel = a.experts.count <= 6    ? subset_posteriors_backward<S, 6>
                      : a.experts.count <= 16 ? subset_posteriors_backward<S, 16>
                                              : subset_posteriors_backward<S, kMaxExperts>;
  start_kernel("subset_posteriors_backward", kernel, blocks_for(a.rows, team), stream, a, team);
}

MMVAE_DEFINE_LAUNCH(SubsetPosteriors)
MMVAE_DEFINE_LAUNCH(SubsetPosteriorsBackward)

}  // namespace cuda
}  // namespace mmvae
