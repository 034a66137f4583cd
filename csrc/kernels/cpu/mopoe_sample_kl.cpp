// The MoPoE step: mean KL over a row's available subsets and a sample of one of them. Nothing of size [S, B, D] exists.
//
// The KLs' logarithms are taken of products: one log for a hundred subsets and dimensions.
// Floor with M experts: 4 (2M + 1) bytes an element forward, 4 (4M + 2) backward; it is compute bound (about ten
// operations a subset forward, twenty backward, and the noise).
#include "lattice.h"
#include "ops.h"

namespace mmvae {
namespace MMVAE_ISA {

// Twice the sum of KLs to N(0, 1): mean^2 + var - 1, and a product whose logarithm belongs to it.
template <class V>
struct KlSum {
  V squares{};
  LogProduct<V> precisions;

  MMVAE_INLINE void add(const KlSum& other) {
    squares += other.squares;
    precisions.multiply(other.precisions);
  }
  MMVAE_INLINE double value() const { return static_cast<double>(sum(squares + precisions.log_of_product())); }
};

template <bool careful, class V>
static MMVAE_INLINE Moments<V> mean_and_var(const Natural<V>& q) {
  const V var = reciprocal(q.precision), mean = q.weighted_mean * var;
  if (!careful) return {mean, var};
  return {q.precision == V{} ? V{} : mean, var};  // only experts that say nothing (logvar = +inf)
}

// Dims [d, d + n) of a row, n <= kBlock, with the sample of subset `chosen`; their share of the KLs' sum.
template <bool careful, class S, class T>
static MMVAE_INLINE KlSum<Vec<T>> sample_and_sum(const Plan& plan, const Sums<T>& sums, const Observed<S>& row,
                                                 int64_t d, int64_t n, int chosen, const Arithmetic<S>* eps, S* z) {
  using V = Vec<T>;
  constexpr int L = kLanes<T>;
  KlSum<V> total;
  const auto sample = [&](int64_t i, int lanes, V mean, V var) __attribute__((always_inline)) {
    store_as(z + i, fma(square_root(var), load_as<T>(eps + i, lanes), mean), lanes);
  };
  for (int m = 0; m < row.count; ++m) {
    const int lone = plan.lone[row.expert[m]];
    if (lone < 0) continue;
    for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      const V mu = load_as<T>(row.mu[m] + d + i, lanes);
      const ExpAndTail<V> var = exp_and_tail(load_as<T>(row.logvar[m] + d + i, lanes));
      total.squares += fma(mu, mu, var.minus_1_minus_x);  // lanes past the end are 0: KL 0
      if (lone == chosen) sample(i, lanes, mu, var.value);
    });
  }
  int visited = 0;
  climb(plan, sums, n, [&](int s, auto at) __attribute__((always_inline)) {
    const auto term = [&](int64_t i) __attribute__((always_inline)) {
      const Natural<V> q = at(i);
      const Moments<V> p = mean_and_var<careful>(q);
      return Moments<V>{fma(p.mu, p.mu, p.logvar - 1), q.precision};
    };
    int64_t i = 0;
    for (; i + 2 * L <= n; i += 2 * L) {
      const Moments<V> a = term(i), b = term(i + L);
      total.squares += a.mu + b.mu;
      total.precisions.multiply(a.logvar * b.logvar);
    }
    for (; i < n; i += L) {
      const Moments<V> a = term(i);
      const int lanes = n - i < L ? static_cast<int>(n - i) : L;
      total.squares += first(a.mu, lanes);
      total.precisions.multiply(first(a.logvar, lanes, 1));
    }
    if (++visited % 8 == 0) total.precisions.fold();
    if (s != chosen) return;
    for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      const Moments<V> p = mean_and_var<careful>(at(i));
      sample(i, lanes, p.mu, p.logvar);
    });
  });
  return total;
}

template <class S>
void mopoe_sample_kl(const MoPoE<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  NoiseTile<T> noise;
  Plan plan(a.lattice, a.experts.count);
  const BlockSums<S> sums(plan, a.experts.count, false);
  for (int64_t r = begin; r < end; ++r) {
    plan.look_at(Observed<S>(a.experts, r, 0));
    a.kl[r] = 0;
    a.subset[r] = plan.listed == 0 ? -1 : plan.usable(choose_component(*a.seed, r, plan.listed));
  }
  for_tiles(begin, end, a.dim, [&](int64_t r0, int64_t r1, int64_t d0, int64_t d1) {
    noise.fill(r0, r1, d0, d1, 0, *a.seed);
    for (int64_t r = r0; r < r1; ++r) {
      const Observed<S> row(a.experts, r, d0);
      const T* eps = noise.row(r);
      S* z = a.z + r * a.dim + d0;
      if (a.subset[r] < 0) {  // nothing to go by: the prior
        for_lanes<S>(d1 - d0, [&](int64_t i, int n) __attribute__((always_inline)) { store(z + i, load(eps + i), n); });
        continue;
      }
      plan.look_at(row);
      KlSum<Vec<S>> kl;
      double careful_kl = 0;
      for_blocks(d1 - d0, [&](int64_t d, int64_t n) {
        const int chosen = static_cast<int>(a.subset[r]);
        sums.with(row, d, n, [&](const auto& block, auto careful) __attribute__((always_inline)) {
          const auto share = sample_and_sum<careful.value>(plan, block, row, d, n, chosen, eps + d, z + d);
          if constexpr (careful.value) {
            careful_kl += share.value();
          } else {
            kl.add(share);
          }
        });
      });
      a.kl[r] += static_cast<T>(0.5 * (kl.value() + careful_kl) / plan.listed);
      if (d1 == a.dim && a.kl[r] < 0) a.kl[r] = 0;  // rounding, near the prior
    }
  });
}

template <class S>
void mopoe_sample_kl_backward(const MoPoEBackward<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  NoiseTile<T> noise;
  Plan plan(a.lattice, a.experts.count);
  const BlockSums<S> sums(plan, a.experts.count, true);
  for (int64_t r = begin; r < end; ++r) {
    const Observed<S> row(a.experts, r, 0);
    plan.look_at(row);
    clear_gradients(a.experts, a.out, r, a.dim, plan.listed == 0);
    if (plan.listed == 0) continue;
    for_blocks(a.dim, [&](int64_t d, int64_t n) {
      sums.with(row, d, n, [&](const auto& block, auto careful) __attribute__((always_inline)) {
        using A = typename std::decay_t<decltype(block)>::Scalar;
        using V = Vec<A>;
        const V grad_kl = splat<V>(a.grad_kl == nullptr ? A(0) : static_cast<A>(a.grad_kl[r]) / plan.listed);
        const auto kl_gradient = [&](int64_t, int, V mean, V, V var_minus_1)
                                     __attribute__((always_inline)) { return kl_adjoint(grad_kl, mean, var_minus_1); };
        bool drawn = false;
        const auto redrawn = [&]() {  // this block's noise, drawn at most once
          if (!drawn) noise.fill(r, r + 1, d, d + n, 0, *a.seed);
          drawn = true;
          return noise.row(r);
        };
        descend<careful.value>(plan, block, row, a.out, r, d, n, [&](int s, auto each) __attribute__((always_inline)) {
          if (a.grad_z == nullptr || s != a.subset[r]) {
            each(kl_gradient);
            return;
          }
          each([&](int64_t i, int lanes, V mean, V var, V var_minus_1) __attribute__((always_inline)) {
            const int64_t at = r * a.dim + d + i;
            const auto lost = var < mean * mean * static_cast<A>(1. / (1 << 2 * kLostBits));
            const V sd_eps = careful || kIsHalf<S> || any(lost) ? square_root(var) * load_as<A>(redrawn() + i, lanes)
                                                                : load_as<A>(a.z + at, lanes) - mean;
            const Moments<V> kl = kl_adjoint(grad_kl, mean, var_minus_1);
            const Moments<V> sample = sample_adjoint(load_as<A>(a.grad_z + at, lanes), sd_eps);
            return Moments<V>{kl.mu + sample.mu, kl.logvar + sample.logvar};
          });
        });
      });
    });
  }
}

MMVAE_FOR_EVERY_TYPE(mopoe_sample_kl, MoPoE)
MMVAE_FOR_EVERY_TYPE(mopoe_sample_kl_backward, MoPoEBackward)

}  // namespace MMVAE_ISA
}  // namespace mmvae
