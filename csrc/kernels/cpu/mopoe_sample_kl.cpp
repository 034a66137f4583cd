// The MoPoE step: mean KL over a row's available subsets and a sample of one of them. Nothing of size [S, B, D] exists.
//
// The KLs' logarithms are taken of products: one log for a hundred subsets and dimensions.
// Floor with M experts: 4 (2M + 1) bytes an element forward, 4 (4M + 2) backward; it is compute bound (about ten
// operations a subset forward, fourteen backward, and the noise).
#include "ops.h"
#include "power_set.h"

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
  MMVAE_INLINE KlSum first(int lanes) const {  // of those lanes alone
    KlSum some;
    some.squares = MMVAE_ISA::first(squares, lanes);
    some.precisions.mantissa = MMVAE_ISA::first(precisions.mantissa, lanes, 1);
    for (int i = 0; i < lanes; ++i) some.precisions.exponent[i] = precisions.exponent[i];
    return some;
  }
  MMVAE_INLINE double value() const { return static_cast<double>(sum(squares + precisions.log_of_product())); }
};

template <bool careful, class V>
static MMVAE_INLINE Moments<V> mean_and_var(const Natural<V>& q) {
  const V var = reciprocal(q.precision), mean = q.weighted_mean * var;
  if (!careful) return {mean, var};
  return {q.precision == V{} ? q.weighted_mean : mean,
          var};  // only experts that say nothing (logvar = +inf): 0, or NaN
}

// The sums of a row's subset, from its members one by one.
template <class T>
class Members {
 public:
  template <class S>
  MMVAE_INLINE Members(const Plan& plan, int subset, const Observed<S>& row)
      : prior_(splat<Vec<T>>(plan.has_prior(subset) ? 1 : 0)) {
    for (int m = 0; m < row.count; ++m)
      if (plan.members(subset) >> row.expert[m] & 1) expert_[count_++] = row.expert[m];
  }
  MMVAE_INLINE Natural<Vec<T>> at(const Sums<T>& sums, int64_t i) const {
    Natural<Vec<T>> q{};
    for (int m = 0; m < count_; ++m) {
      q.precision += load(sums.precision(expert_[m]) + i);
      q.weighted_mean += load(sums.precision(expert_[m]) + sums.block + i);
    }
    q.precision += prior_;
    return q;
  }
  MMVAE_INLINE void add_adjoint(const Sums<T>& sums, int64_t i, const Natural<Vec<T>>& g) const {
    for (int m = 0; m < count_; ++m) {
      T* out = sums.adjoint(expert_[m]);
      store(out + i, load(out + i) + g.precision);
      store(out + sums.block + i, load(out + sums.block + i) + g.weighted_mean);
    }
  }

 private:
  int count_ = 0;
  int32_t expert_[kMaxExperts];
  Vec<T> prior_;
};

// Dims [d, d + n) of the sample of subset `chosen`.
template <bool careful, class S, class T>
static MMVAE_INLINE void sample(const Plan& plan, const Sums<T>& sums, const Observed<S>& row, int64_t d, int64_t n,
                                int chosen, const Arithmetic<S>* eps, S* z) {
  using V = Vec<T>;
  const auto draw = [&](int64_t i, int lanes, V mean, V var) __attribute__((always_inline)) {
    store_as(z + i, fma(square_root(var), load_as<T>(eps + i, lanes), mean), lanes);
  };
  for (int m = 0; m < row.count; ++m) {
    if (plan.lone[row.expert[m]] != chosen) continue;
    for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      draw(i, lanes, load_as<T>(row.mu[m] + d + i, lanes), exp(load_as<T>(row.logvar[m] + d + i, lanes)));
    });
    return;
  }
  const Members<T> members(plan, chosen, row);
  for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    const Moments<V> p = mean_and_var<careful>(members.at(sums, i));
    draw(i, lanes, p.mu, p.logvar);
  });
}

// The KLs of all subsets of several of a row's N experts over dims [0, n) of the block.
template <int N, class T>
static MMVAE_NOINLINE KlSum<Vec<T>> sum_power_set(const Sums<T>& sums, const int32_t* experts, bool prior, int64_t n) {
  using V = Vec<T>;
  constexpr int L = kLanes<T>;
  KlSum<V> total;
  for (int64_t i = 0; i < n; i += L) {
    const PowerSet<N, V> set(sums, experts, i, splat<V>(prior ? 1 : 0));
    KlSum<V> own;
    V waiting{};  // logarithms of two subsets at a time: `visit` is written out, so this is no branch
    bool odd = false;
    set.climb([&](const Natural<V>& q) __attribute__((always_inline)) {
      const Moments<V> p = mean_and_var<false>(q);
      own.squares += fma(p.mu, p.mu, p.logvar - 1);
      if (odd) own.precisions.multiply(waiting * q.precision);
      waiting = q.precision;
      odd = !odd;
    });
    if (odd) own.precisions.multiply(waiting);
    total.add(n - i < L ? own.first(static_cast<int>(n - i)) : own);
  }
  return total;
}

// The same for any list of subsets.
template <bool careful, class T>
static MMVAE_INLINE KlSum<Vec<T>> sum_lattice(const Plan& plan, const Sums<T>& sums, int64_t n) {
  using V = Vec<T>;
  constexpr int L = kLanes<T>;
  KlSum<V> total;
  int64_t multiplied = 0;
  climb(plan, sums, n, [&](int, auto at) __attribute__((always_inline)) {
    const auto term = [&](int64_t i) __attribute__((always_inline)) {
      const Natural<V> q = at(i);
      const Moments<V> p = mean_and_var<careful>(q);
      return Moments<V>{fma(p.mu, p.mu, p.logvar - 1), q.precision};
    };
    V squares{};
    int64_t i = 0;
    for (; i + 2 * L <= n; i += 2 * L) {
      const Moments<V> a = term(i), b = term(i + L);
      squares += a.mu + b.mu;
      total.precisions.multiply(a.logvar * b.logvar);
    }
    for (; i < n; i += L) {
      const Moments<V> a = term(i);
      const int lanes = n - i < L ? static_cast<int>(n - i) : L;
      squares += first(a.mu, lanes);
      total.precisions.multiply(first(a.logvar, lanes, 1));
    }
    total.squares += squares;
    multiplied += (n + 2 * L - 1) / (2 * L);
    if (multiplied > 32) {
      total.precisions.fold();
      multiplied = 0;
    }
  });
  return total;
}

// Twice the sum of the KLs of a row's subsets over dims [d, d + n).
template <bool careful, class S, class T>
static MMVAE_INLINE KlSum<Vec<T>> sum_kls(const Plan& plan, const Sums<T>& sums, const Observed<S>& row, int64_t d,
                                          int64_t n) {
  using V = Vec<T>;
  KlSum<V> total;
  for (int m = 0; m < row.count; ++m) {
    if (plan.lone[row.expert[m]] < 0) continue;
    for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      const V mu = load_as<T>(row.mu[m] + d + i, lanes);
      const V logvar = load_as<T>(row.logvar[m] + d + i, lanes);
      total.squares += fma(mu, mu, exp_and_tail(logvar).minus_1_minus_x);  // lanes past the end are 0: KL 0
    });
  }
  if (!careful && plan.all_subsets && row.count <= kMaxPowerSet) {
    const bool prior = plan.prior_in_full;
    with_count(row.count, [&](auto count) { total.add(sum_power_set<count.value>(sums, row.expert, prior, n)); });
  } else {
    total.add(sum_lattice<careful>(plan, sums, n));
  }
  return total;
}

template <class S>
void mopoe_sample_kl(const MoPoE<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  const SeedValue seed = a.seed.read();
  NoiseTile<T> noise;
  Plan plan(a.subsets, a.experts.count);
  const Blocks<S> blocks(plan, false, a.dim < kTile ? a.dim : kTile);
  for (int64_t r = begin; r < end; ++r) {
    plan.look_at(Observed<S>(a.experts, r, 0));
    a.kl[r] = 0;
    a.subset[r] = plan.listed == 0 ? -1 : plan.usable(choose_component(seed, r, plan.listed));
  }
  for_tiles(begin, end, a.dim, [&](int64_t r0, int64_t r1, int64_t d0, int64_t d1) {
    noise.fill(r0, r1, d0, d1, 0, seed);
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
      const int chosen = static_cast<int>(a.subset[r]);
      blocks.over(row, d1 - d0,
                  [&](int64_t d, int64_t n, const auto& sums, auto careful) __attribute__((always_inline)) {
                    sample<careful.value>(plan, sums, row, d, n, chosen, eps + d, z + d);
                    const auto share = sum_kls<careful.value>(plan, sums, row, d, n);
                    if constexpr (careful.value) {
                      careful_kl += share.value();
                    } else {
                      kl.add(share);
                    }
                  });
      a.kl[r] += static_cast<T>(0.5 * (kl.value() + careful_kl) / plan.listed);
      if (d1 == a.dim && a.kl[r] < 0) a.kl[r] = 0;  // rounding, near the prior
    }
  });
}

// What the loss's gradients mean for one row's posteriors. T is what its block is computed in.
template <bool careful, class S, class T>
class RowGradients {
 public:
  using V = Vec<T>;
  const V grad_kl;   // to each subset's KL
  const int chosen;  // the subset whose sample has a gradient, or -1

  MMVAE_INLINE RowGradients(const MoPoEBackward<S>& a, const Plan& plan, NoiseTile<Arithmetic<S>>& noise, int64_t r,
                            int64_t d, int64_t n)
      : grad_kl(splat<V>(a.grad_kl == nullptr ? T(0) : static_cast<T>(a.grad_kl[r]) / plan.listed)),
        chosen(a.grad_z == nullptr ? -1 : static_cast<int>(a.subset[r])),
        a_(a),
        noise_(noise),
        row_(r),
        first_(d),
        dims_(n) {}

  MMVAE_INLINE Moments<V> of_kl(V mean, V var_minus_1) const { return kl_adjoint(grad_kl, mean, var_minus_1); }

  MMVAE_INLINE Moments<V> of_sample(int64_t i, int lanes, V mean, V var) {
    const int64_t at = row_ * a_.dim + first_ + i;
    const auto lost = var < mean * mean * static_cast<T>(1. / (1 << 2 * kLostBits));
    const V sd_eps = careful || kIsHalf<S> || any(lost) ? square_root(var) * load_as<T>(redrawn() + i, lanes)
                                                        : load_as<T>(a_.z + at, lanes) - mean;
    return sample_adjoint(load_as<T>(a_.grad_z + at, lanes), sd_eps);
  }

  MMVAE_INLINE Moments<V> of_chosen(int64_t i, int lanes, V mean, V var, V var_minus_1) {
    const Moments<V> kl = of_kl(mean, var_minus_1), sample = of_sample(i, lanes, mean, var);
    return {kl.mu + sample.mu, kl.logvar + sample.logvar};
  }

 private:
  MMVAE_INLINE const Arithmetic<S>* redrawn() {  // this block's noise, drawn at most once
    if (!drawn_) noise_.fill(row_, row_ + 1, first_, first_ + dims_, 0, a_.seed.read());
    drawn_ = true;
    return noise_.row(row_);
  }

  const MoPoEBackward<S>& a_;
  NoiseTile<Arithmetic<S>>& noise_;
  const int64_t row_, first_, dims_;
  bool drawn_ = false;
};

// The adjoints of the sums of a row's N experts over dims [0, n) of the block, from the KLs of all their subsets.
template <int N, class T>
static MMVAE_NOINLINE void descend_power_set(const Sums<T>& sums, const int32_t* experts, bool prior, Vec<T> grad_kl,
                                             int64_t n) {
  using V = Vec<T>;
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const PowerSet<N, V> set(sums, experts, i, splat<V>(prior ? 1 : 0));
    Natural<V> adjoint[N];
    set.descend(
        [](const Natural<V>& q) __attribute__((always_inline)) {  // but for factors that all have in common
          const Moments<V> p = mean_and_var<false>(q);
          const V var = p.logvar;
          return Natural<V>{var * fma(p.mu, p.mu, fma(var, static_cast<T>(0.5), splat<V>(-0.5))), var * p.mu};
        },
        adjoint);
    MMVAE_UNROLL
    for (int m = 0; m < N; ++m) {
      T* out = sums.adjoint(experts[m]);
      store(out + i, -grad_kl * adjoint[m].precision);
      store(out + sums.block + i, grad_kl * adjoint[m].weighted_mean);
    }
  }
}

template <class S>
void mopoe_sample_kl_backward(const MoPoEBackward<S>& a, int64_t begin, int64_t end) {
  NoiseTile<Arithmetic<S>> noise;
  Plan plan(a.subsets, a.experts.count);
  const Blocks<S> blocks(plan, true, a.dim);
  for (int64_t r = begin; r < end; ++r) {
    const Observed<S> row(a.experts, r, 0);
    plan.look_at(row);
    clear_gradients(a.experts, a.out, r, a.dim, plan.listed == 0);
    if (plan.listed == 0) continue;
    blocks.over(row, a.dim, [&](int64_t d, int64_t n, const auto& sums, auto careful) __attribute__((always_inline)) {
      using T = typename std::decay_t<decltype(sums)>::Scalar;
      using V = Vec<T>;
      RowGradients<careful.value, S, T> gradients(a, plan, noise, r, d, n);
      const auto own = [&](int s, auto each) __attribute__((always_inline)) {
        if (s == gradients.chosen) {
          each([&](int64_t i, int lanes, V mean, V var, V var_minus_1)
                   __attribute__((always_inline)) { return gradients.of_chosen(i, lanes, mean, var, var_minus_1); });
        } else {
          each([&](int64_t, int, V mean, V, V var_minus_1)
                   __attribute__((always_inline)) { return gradients.of_kl(mean, var_minus_1); });
        }
      };
      if (!careful.value && plan.all_subsets && row.count <= kMaxPowerSet) {
        const bool prior = plan.prior_in_full;
        with_count(row.count,
                   [&](auto count) { descend_power_set<count.value>(sums, row.expert, prior, gradients.grad_kl, n); });
        if (gradients.chosen >= 0 && !plan.is_lone(gradients.chosen)) {
          const Members<T> members(plan, gradients.chosen, row);
          for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
            const Moments<V> q = mean_and_var<false>(members.at(sums, i));
            members.add_adjoint(sums, i, to_natural(gradients.of_sample(i, lanes, q.mu, q.logvar), q.mu, q.logvar));
          });
        }
      } else {
        descend(plan, sums, n, own);
      }
      write_gradients<careful.value>(plan, sums, row, a.out, r, d, n, own);
    });
  }
}

MMVAE_FOR_EVERY_TYPE(mopoe_sample_kl, MoPoE)
MMVAE_FOR_EVERY_TYPE(mopoe_sample_kl_backward, MoPoEBackward)

}  // namespace MMVAE_ISA
}  // namespace mmvae
