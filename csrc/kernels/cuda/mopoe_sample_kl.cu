// The MoPoE step: mean KL over a row's available subsets and a sample of one of them. Nothing of size [S, B, D] exists.
//
// All 2^M - 1 subsets of up to six experts: the sums of the eight subsets of the first three experts lie in registers,
// and every subset is one of those plus one of the subsets of the others: one addition a sum. The KLs' logarithms are
// taken of products. Other lists of subsets, and more experts: subset by subset.
#include "subsets.cuh"

namespace mmvae {
namespace cuda {

constexpr int kLow = 3, kLowSets = 1 << kLow, kHigh = 3;
constexpr int kAllSubsets = kLow + kHigh;  // this many experts at most take the fast path

// A sum of logarithms as the logarithm of a product: mantissas multiply, exponents add.
template <class A>
struct LogProduct;

template <>
struct LogProduct<float> {
  float mantissa = 1;
  int exponent = 0;
  // x positive and normal; up to about a hundred factors between calls of fold()
  __device__ __forceinline__ void multiply(float x) {
    const uint32_t bits = same_bits<uint32_t>(x);
    exponent += static_cast<int>(bits >> 23) - 127;
    mantissa *= same_bits<float>((bits & 0x007FFFFFu) | 0x3F800000u);
  }
  __device__ __forceinline__ void fold() {
    const float x = mantissa;
    mantissa = 1;
    multiply(x);
  }
  __device__ __forceinline__ float log_of_product() const {
    return static_cast<float>(exponent) * 0.693147181f + log(mantissa);
  }
};

template <>
struct LogProduct<double> {
  double mantissa = 1;
  int exponent = 0;
  __device__ __forceinline__ void multiply(double x) {
    const uint64_t bits = same_bits<uint64_t>(x);
    exponent += static_cast<int>(bits >> 52) - 1023;
    mantissa *= same_bits<double>((bits & 0x000FFFFFFFFFFFFFull) | 0x3FF0000000000000ull);
  }
  __device__ __forceinline__ void fold() {
    const double x = mantissa;
    mantissa = 1;
    multiply(x);
  }
  __device__ __forceinline__ double log_of_product() const { return exponent * 0.6931471805599453 + log(mantissa); }
};

// How a row's subset is chosen: the k-th available one in the caller's order, counted over the whole list.
struct Choice {
  int64_t usable;  // how many are available
  int64_t index;   // into the list, -1: none
};

// The available subsets of a list in counting order are those of the observed experts: no need to walk through it.
MMVAE_DEVICE Choice choose_of_all(int64_t observed, const SeedValue& seed, int64_t row) {
  Choice choice{(int64_t{1} << __popcll(observed)) - 1, -1};
  if (choice.usable == 0) return choice;
  int64_t left = choose_component(seed, row, choice.usable) + 1, members = 0;
  for (int64_t rest = observed; rest != 0; rest &= rest - 1, left >>= 1)  // bit i of `left` is for the i-th observed
    if (left & 1) members |= rest & -rest;
  choice.index = members - 1;
  return choice;
}

MMVAE_DEVICE Choice choose(const SubsetList& subsets, int64_t observed, const SeedValue& seed, int64_t row) {
  if (subsets.counting) return choose_of_all(observed, seed, row);
  Choice choice{0, -1};
  for (int s = 0; s < subsets.listed; ++s) choice.usable += listed_subset(subsets, s).available(observed);
  if (choice.usable == 0) return choice;
  int64_t left = choose_component(seed, row, choice.usable);
  for (int s = 0; s < subsets.listed; ++s) {
    if (!listed_subset(subsets, s).available(observed) || left-- > 0) continue;
    choice.index = s;
    break;
  }
  return choice;
}

// The plain sums of all subsets at one dimension.
template <class A>
struct AllSums {
  A low_precision[kLowSets], low_mean[kLowSets];

  template <class Terms>
  __device__ __forceinline__ explicit AllSums(const Terms& x) {
    low_precision[0] = low_mean[0] = 0;
#pragma unroll
    for (int m = 0; m < kLow; ++m)
#pragma unroll
      for (int s = 0; s < 1 << m; ++s) {
        low_precision[s | 1 << m] = low_precision[s] + x.precision[m];
        low_mean[s | 1 << m] = low_mean[s] + x.precision[m] * x.mu[m];
      }
  }
};

// Calls begin(high, precision, mean) for every available set of the later experts with their sums, then
// f(low, precision, weighted_mean) for each set of the first three that makes an available joint subset with it, then
// end(high). Joint: not of one expert alone without the prior.
template <class A, class Terms, class F, class End>
MMVAE_DEVICE void for_joint_subsets(const Terms& x, const AllSums<A>& sums, const SubsetList& subsets, int experts,
                                    int64_t observed, F f, End end) {
  const bool prior_in_all = subsets.prior == PriorPlace::all;
  int available_low = 0;
#pragma unroll
  for (int low = 0; low < kLowSets; ++low) available_low |= (low & ~observed) == 0 ? 1 << low : 0;
  const int high_sets = experts > kLow ? 1 << (experts - kLow) : 1;
  for (int high = 0; high < high_sets; ++high) {
    if (high & ~(observed >> kLow)) continue;
    A high_precision = prior_in_all ? 1 : 0, high_mean = 0;
#pragma unroll
    for (int m = 0; m < kHigh; ++m) {
      const A own = high >> m & 1 ? x.precision[kLow + m] : A(0);
      high_precision += own;
      high_mean += own * x.mu[kLow + m];
    }
    int now = available_low;
    if (high == 0) now &= prior_in_all ? ~0x01 : ~0x17;  // none; 0x17: the sets 0, 1, 2 and 4
    if (high != 0 && (high & (high - 1)) == 0 && !prior_in_all) now &= ~0x01;
#pragma unroll
    for (int low = 0; low < kLowSets; ++low) {
      if (!(now >> low & 1)) continue;
      const bool with_prior = !prior_in_all && subsets.has_prior(high << kLow | low);
      f(low, high_precision + sums.low_precision[low] + (with_prior ? A(1) : A(0)), high_mean + sums.low_mean[low]);
    }
    end(high);
  }
}

template <class S>
static __global__ void __launch_bounds__(kBlock) mopoe_of_all(const __grid_constant__ MoPoE<S> a, int team) {
  using A = Arithmetic<S>;
  const SeedValue seed = a.seed.read();
  const bool prior_in_all = a.subsets.prior == PriorPlace::all;
  for_rows(a.rows, team, [&](int64_t row, int lane, bool valid) {
    const int64_t observed = valid ? observed_experts(a.experts, row) : 0;
    const Choice choice = choose(a.subsets, observed, seed, row);
    const Subset chosen = choice.index < 0 ? Subset{0, true} : listed_subset(a.subsets, choice.index);
    A twice_kl = 0;
    LogProduct<A> precisions;
    for_dims(valid ? a.dim : 0, team, lane, [&](int64_t d) {
      const ExpertTerms<S, kAllSubsets> x(a.experts, observed, row, d);
      if (!x.safe) {
        for (int64_t members = 1; members <= a.subsets.everyone; ++members) {
          const Subset subset = subset_of(a.subsets, members);
          if (!subset.available(observed)) continue;
          x.posterior(a.experts, row, d, subset, [&](const auto& q) { twice_kl += static_cast<A>(2 * kl_of(q)); });
        }
      } else {
        const AllSums<A> sums(x);
        for_joint_subsets<A>(
            x, sums, a.subsets, a.experts.count, observed,
            [&](int, A precision, A weighted_mean) {
              const A var = 1 / precision, mean = weighted_mean * var;
              twice_kl += mean * mean + (var - 1);
              precisions.multiply(precision);
            },
            [&](int) { precisions.fold(); });
        if (!prior_in_all) {
#pragma unroll
          for (int m = 0; m < kAllSubsets; ++m)
            if (observed >> m & 1) twice_kl += x.mu[m] * x.mu[m] + exp_and_tail(x.logvar[m]).minus_1_minus_x;
        }
      }
      const A eps = normal_at<A>(seed, row, 0, d);
      x.posterior(a.experts, row, d, chosen,
                  [&](const auto& q) { a.z[row * a.dim + d] = to_memory<S>(static_cast<A>(q.mu + q.sd * eps)); });
    });
    const A kl = team_sum(twice_kl + precisions.log_of_product(), team) * static_cast<A>(0.5);
    if (!valid || lane != 0) return;
    a.kl[row] = choice.usable == 0 || kl < 0 ? A(0) : kl / choice.usable;  // below 0: rounding, near the prior
    a.subset[row] = choice.index;
  });
}

template <class S, int kMax>
static __global__ void __launch_bounds__(kBlock) mopoe_of_listed(const __grid_constant__ MoPoE<S> a, int team) {
  using A = Arithmetic<S>;
  const SeedValue seed = a.seed.read();
  for_rows(a.rows, team, [&](int64_t row, int lane, bool valid) {
    const int64_t observed = valid ? observed_experts(a.experts, row) : 0;
    const Choice choice = choose(a.subsets, observed, seed, row);
    const Subset chosen = choice.index < 0 ? Subset{0, true} : listed_subset(a.subsets, choice.index);
    A kl = 0;
    for_dims(valid ? a.dim : 0, team, lane, [&](int64_t d) {
      const ExpertTerms<S, kMax> x(a.experts, observed, row, d);
      for (int s = 0; s < a.subsets.listed; ++s) {
        const Subset subset = listed_subset(a.subsets, s);
        if (!subset.available(observed)) continue;
        x.posterior(a.experts, row, d, subset, [&](const auto& q) { kl += static_cast<A>(kl_of(q)); });
      }
      const A eps = normal_at<A>(seed, row, 0, d);
      x.posterior(a.experts, row, d, chosen,
                  [&](const auto& q) { a.z[row * a.dim + d] = to_memory<S>(static_cast<A>(q.mu + q.sd * eps)); });
    });
    kl = team_sum(kl, team);
    if (!valid || lane != 0) return;
    a.kl[row] = choice.usable == 0 ? A(0) : kl / choice.usable;
    a.subset[row] = choice.index;
  });
}

// The chosen subset's part of the backward: its posterior is where grad_z goes.
template <class S, int kMax>
MMVAE_DEVICE void add_sample(const MoPoEBackward<S>& a, const ExpertTerms<S, kMax>& x, const Subset& chosen,
                             const SeedValue& seed, int64_t row, int64_t d, TermGradients<S, kMax>& grads) {
  using A = Arithmetic<S>;
  const A grad_z = from_memory<S>(a.grad_z[row * a.dim + d]), eps = normal_at<A>(seed, row, 0, d);
  x.posterior(a.experts, row, d, chosen, [&](const auto& q) { grads.add(x, chosen, q, of_sample(q, grad_z, eps)); });
}

template <class S, int kMax>
MMVAE_DEVICE void add_kl(const MoPoEBackward<S>& a, const ExpertTerms<S, kMax>& x, const Subset& subset,
                         Arithmetic<S> grad_kl, int64_t row, int64_t d, TermGradients<S, kMax>& grads) {
  x.posterior(a.experts, row, d, subset, [&](const auto& q) { grads.add(x, subset, q, of_kl(q, grad_kl)); });
}

// Which subset z was drawn from; of no members where that does not matter.
template <class S>
MMVAE_DEVICE Subset chosen_subset(const MoPoEBackward<S>& a, int64_t row) {
  if (a.grad_z == nullptr) return {0, true};
  const int64_t index = a.subset[row];
  return index < 0 || index >= a.subsets.listed ? Subset{0, true} : listed_subset(a.subsets, index);
}

template <class S>
static __global__ void __launch_bounds__(kBlock)
    mopoe_of_all_backward(const __grid_constant__ MoPoEBackward<S> a, int team) {
  using A = Arithmetic<S>;
  constexpr int kMax = kAllSubsets;
  const SeedValue seed = a.grad_z == nullptr ? SeedValue{} : a.seed.read();
  const bool prior_in_all = a.subsets.prior == PriorPlace::all;
  for_rows(a.rows, team, [&](int64_t row, int lane, bool valid) {
    if (!valid) return;
    const int64_t observed = observed_experts(a.experts, row);
    const Subset chosen = chosen_subset(a, row);
    const int64_t usable = (int64_t{1} << __popcll(observed)) - 1;
    const A grad_kl = a.grad_kl == nullptr || usable == 0 ? A(0) : a.grad_kl[row] / usable;
    for_dims(a.dim, team, lane, [&](int64_t d) {
      const ExpertTerms<S, kMax> x(a.experts, observed, row, d);
      TermGradients<S, kMax> grads;
      if (!x.safe) {
        for (int64_t members = 1; members <= a.subsets.everyone; ++members) {
          const Subset subset = subset_of(a.subsets, members);
          if (subset.available(observed)) add_kl(a, x, subset, grad_kl, row, d, grads);
        }
      } else {
        // adjoints of the sums: of each set of the first three experts, and of each of the others
        A to_low_precision[kLowSets] = {}, to_low_mean[kLowSets] = {};
        A to_high_precision[kHigh] = {}, to_high_mean[kHigh] = {};
        A set_precision = 0, set_mean = 0;
        const AllSums<A> sums(x);
        for_joint_subsets<A>(
            x, sums, a.subsets, a.experts.count, observed,
            [&](int low, A precision, A weighted_mean) {
              const A var = 1 / precision;
              const Natural<A> g = natural_kl_adjoint(A(1), weighted_mean * var, var);
              to_low_precision[low] += g.precision;
              to_low_mean[low] += g.weighted_mean;
              set_precision += g.precision;
              set_mean += g.weighted_mean;
            },
            [&](int high) {
#pragma unroll
              for (int m = 0; m < kHigh; ++m) {
                to_high_precision[m] += high >> m & 1 ? set_precision : A(0);
                to_high_mean[m] += high >> m & 1 ? set_mean : A(0);
              }
              set_precision = set_mean = 0;
            });
#pragma unroll
        for (int m = 0; m < kMax; ++m) {
          if (!(observed >> m & 1)) continue;
          A to_precision = 0, to_mean = 0;
          if (m >= kLow) {
            to_precision = to_high_precision[m - kLow];
            to_mean = to_high_mean[m - kLow];
          } else {
#pragma unroll
            for (int low = 0; low < kLowSets; ++low) {
              to_precision += low >> m & 1 ? to_low_precision[low] : A(0);
              to_mean += low >> m & 1 ? to_low_mean[low] : A(0);
            }
          }
          Moments<A> g = natural_to_expert(x.precision[m], x.mu[m], to_precision, to_mean);
          if (!prior_in_all) {
            const Moments<A> own = kl_adjoint(A(1), x.mu[m], expm1(x.logvar[m]));
            g.mu += own.mu;
            g.logvar += own.logvar;
          }
          grads.mu[m] = grad_kl * g.mu;
          grads.logvar[m] = grad_kl * g.logvar;
        }
      }
      if (chosen.members != 0) add_sample(a, x, chosen, seed, row, d, grads);
      grads.store(a.out, a.experts.count, row, d);
    });
  });
}

template <class S, int kMax>
static __global__ void __launch_bounds__(kBlock)
    mopoe_of_listed_backward(const __grid_constant__ MoPoEBackward<S> a, int team) {
  using A = Arithmetic<S>;
  const SeedValue seed = a.grad_z == nullptr ? SeedValue{} : a.seed.read();
  for_rows(a.rows, team, [&](int64_t row, int lane, bool valid) {
    if (!valid) return;
    const int64_t observed = observed_experts(a.experts, row);
    const Subset chosen = chosen_subset(a, row);
    int64_t usable = 0;
    for (int s = 0; s < a.subsets.listed; ++s) usable += listed_subset(a.subsets, s).available(observed);
    const A grad_kl = a.grad_kl == nullptr || usable == 0 ? A(0) : a.grad_kl[row] / usable;
    for_dims(a.dim, team, lane, [&](int64_t d) {
      const ExpertTerms<S, kMax> x(a.experts, observed, row, d);
      TermGradients<S, kMax> grads;
      for (int s = 0; s < a.subsets.listed; ++s) {
        const Subset subset = listed_subset(a.subsets, s);
        if (subset.available(observed)) add_kl(a, x, subset, grad_kl, row, d, grads);
      }
      if (chosen.members != 0) add_sample(a, x, chosen, seed, row, d, grads);
      grads.store(a.out, a.experts.count, row, d);
    });
  });
}

// Whether every subset is listed, of few enough experts. (An expert more doubles the subsets.)
template <class Args>
static bool lists_all(const Args& a) {
  return a.experts.count <= kAllSubsets && a.subsets.listed == (1 << a.experts.count) - 1;
}

template <class S>
static void start(const MoPoE<S>& a, cudaStream_t stream) {
  const int team = team_for(a.dim);
  const auto kernel = lists_all(a)            ? mopoe_of_all<S>
                      : a.experts.count <= 16 ? mopoe_of_listed<S, 16>
                                              : mopoe_of_listed<S, kMaxExperts>;
  start_kernel("mopoe_sample_kl", kernel, blocks_for(a.rows, team), stream, a, team);
}

template <class S>
static void start(const MoPoEBackward<S>& a, cudaStream_t stream) {
  const int team = team_for(a.dim);
  const auto kernel = lists_all(a)            ? mopoe_of_all_backward<S>
                      : a.experts.count <= 16 ? mopoe_of_listed_backward<S, 16>
                                              : mopoe_of_listed_backward<S, kMaxExperts>;
  start_kernel("mopoe_sample_kl_backward", kernel, blocks_for(a.rows, team), stream, a, team);
}

MMVAE_DEFINE_LAUNCH(MoPoE)
MMVAE_DEFINE_LAUNCH(MoPoEBackward)

}  // namespace cuda
}  // namespace mmvae
