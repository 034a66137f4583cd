// Every listed subset's product, with its KL to N(0, I), from one read of the experts.
//
// Floor with M experts and S subsets: 4 (2M + 2S) bytes an element forward, 4 (4M + 2S) backward, of which the S
// posteriors are nearly all: at M = 5 it is bound by writing and reading them.
#include "lattice.h"
#include "ops.h"

namespace mmvae {
namespace MMVAE_ISA {

template <class V>
struct Posterior {
  V mu, logvar;
  V kl;  // twice it
};

template <class S>
void subset_posteriors(const SubsetPosteriors<S>& a, int64_t begin, int64_t end) {
  Plan plan(a.subsets, a.experts.count);
  const Blocks<S> blocks(plan, false, a.dim);
  for (int64_t r = begin; r < end; ++r) {
    const Observed<S> row(a.experts, r, 0);
    plan.look_at(row);
    for (int s = 0; s < a.subsets.listed; ++s) {
      const int64_t at = s * a.rows + r;
      a.available[at] = plan.has(s);
      a.kl[at] = 0;
      if (plan.has(s)) continue;
      memset(a.mu + at * a.dim, 0, a.dim * sizeof(S));
      memset(a.logvar + at * a.dim, 0, a.dim * sizeof(S));
    }
    blocks.over(row, a.dim, [&](int64_t d, int64_t n, const auto& sums, auto careful) __attribute__((always_inline)) {
      using T = typename std::decay_t<decltype(sums)>::Scalar;
      using V = Vec<T>;
      const auto write = [&](int s, auto posterior) __attribute__((always_inline)) {
        const int64_t at = s * a.rows + r;
        S *mu = a.mu + at * a.dim + d, *logvar = a.logvar + at * a.dim + d;
        V kl{};
        for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
          const Posterior<V> q = posterior(i, lanes);
          store_as(mu + i, q.mu, lanes);
          store_as(logvar + i, q.logvar, lanes);
          kl += first(q.kl, lanes);
        });
        a.kl[at] += static_cast<Arithmetic<S>>(sum(kl) * static_cast<T>(0.5));
      };
      for (int m = 0; m < row.count; ++m) {
        if (plan.lone[row.expert[m]] < 0) continue;
        write(plan.lone[row.expert[m]], [&](int64_t i, int lanes) __attribute__((always_inline)) {
          V mu = load_as<T>(row.mu[m] + d + i, lanes);
          const V logvar = load_as<T>(row.logvar[m] + d + i, lanes);
          if (careful) mu = logvar == splat<V>(static_cast<T>(INFINITY)) ? mu - mu : mu;  // 0, or NaN
          return Posterior<V>{mu, logvar, fma(mu, mu, exp_and_tail(logvar).minus_1_minus_x)};
        });
      }
      climb(plan, sums, n, [&](int s, auto at) __attribute__((always_inline)) {
        write(s, [&](int64_t i, int) __attribute__((always_inline)) {
          const Natural<V> q = at(i);
          const V var = reciprocal(q.precision), mean = q.weighted_mean * var, log_precision = log(q.precision);
          // log T - (T - 1) / T: no cancellation beyond that of T - 1, which is exact near the prior
          const V kl = fma(mean, mean, fma(1 - q.precision, var, log_precision));
          if (!careful) return Posterior<V>{mean, -log_precision, kl};
          const auto silent = q.precision == V{};  // only experts that say nothing (logvar = +inf)
          const V inf = splat<V>(static_cast<T>(INFINITY));
          const V nothing = q.weighted_mean;  // 0, or NaN
          return Posterior<V>{silent ? nothing : mean, silent ? inf : -log_precision, silent ? inf + nothing : kl};
        });
      });
    });
    for (int s = 0; s < a.subsets.listed; ++s)
      if (a.kl[s * a.rows + r] < 0) a.kl[s * a.rows + r] = 0;  // rounding, near the prior
  }
}

template <class S>
void subset_posteriors_backward(const SubsetPosteriorsBackward<S>& a, int64_t begin, int64_t end) {
  Plan plan(a.subsets, a.experts.count);
  const Blocks<S> blocks(plan, true, a.dim);
  for (int64_t r = begin; r < end; ++r) {
    const Observed<S> row(a.experts, r, 0);
    plan.look_at(row);
    clear_gradients(a.experts, a.out, r, a.dim, false);
    blocks.over(row, a.dim, [&](int64_t d, int64_t n, const auto& sums, auto careful) __attribute__((always_inline)) {
      using T = typename std::decay_t<decltype(sums)>::Scalar;
      using V = Vec<T>;
      const auto own = [&](int s, auto each) __attribute__((always_inline)) {
        const int64_t at = s * a.rows + r;
        const S* grad_mu = a.grad_mu == nullptr ? nullptr : a.grad_mu + at * a.dim + d;
        const S* grad_logvar = a.grad_logvar == nullptr ? nullptr : a.grad_logvar + at * a.dim + d;
        const V grad_kl = splat<V>(a.grad_kl == nullptr ? 0 : a.grad_kl[at]);
        // Subsets go by from the last to the first: what the next one needs is asked for in good time.
        const int64_t next = s > 0 && plan.has(s - 1) ? a.rows * a.dim : 0;
        each([&](int64_t i, int lanes, V mean, V, V var_minus_1) __attribute__((always_inline)) {
          Moments<V> g = kl_adjoint(grad_kl, mean, var_minus_1);
          if (grad_mu != nullptr) {
            __builtin_prefetch(grad_mu + i - next);
            g.mu += load_as<T>(grad_mu + i, lanes);
          }
          if (grad_logvar != nullptr) {
            __builtin_prefetch(grad_logvar + i - next);
            g.logvar += load_as<T>(grad_logvar + i, lanes);
          }
          return g;
        });
      };
      descend(plan, sums, n, own);
      write_gradients<careful.value>(plan, sums, row, a.out, r, d, n, own);
    });
  }
}

MMVAE_FOR_EVERY_TYPE(subset_posteriors, SubsetPosteriors)
MMVAE_FOR_EVERY_TYPE(subset_posteriors_backward, SubsetPosteriorsBackward)

}  // namespace MMVAE_ISA
}  // namespace mmvae
