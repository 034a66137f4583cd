// product_of_experts, and poe_sample_kl: the product, K samples of it, its KL to N(0, I) and, when asked for, to each
// of its experts, in one pass.
//
// Floor with M experts: 4 (2M + 2) bytes an element forward (4 (2M + 3) with a sample), 4 (4M + 4) backward. Beyond the
// cache it is bound by memory, within it by M exps and the noise.
#include "ops.h"
#include "product.h"

namespace mmvae {
namespace MMVAE_ISA {

template <class S, bool weighted>
static void product_of_experts(const PoE<S>& a, int64_t begin, int64_t end) {
  const Weights<Arithmetic<S>, weighted> weights{a.weights, a.dim};
  for (int64_t r = begin; r < end; ++r) {
    const Observed<S> row(a.experts, r, 0);
    for_runs(a.dim, [&](int64_t d, int64_t n) {
      S *mu = a.mu + r * a.dim + d, *logvar = a.logvar + r * a.dim + d;
      product(row, weights, 0, a.prior, d, n,
              [&](int64_t i, int lanes, const Moments<Vec<S>>& joint) __attribute__((always_inline)) {
                store(mu + i, joint.mu, lanes);
                store(logvar + i, joint.logvar, lanes);
              });
    });
  }
}

// The product q in units of one of its experts, as KL(q || expert) and its gradients need it.
template <class V>
struct FromExpert {
  V distance, log_ratio;  // (mu - mu_m) / sd_m, log(sd / sd_m)
  V inverse_sd;
};

template <class T>
static MMVAE_INLINE FromExpert<Vec<T>> from_expert(Vec<T> mu, Vec<T> logvar, Vec<T> expert_mu, Vec<T> expert_logvar) {
  const Vec<T> inverse_sd = exp(expert_logvar * static_cast<T>(-0.5));
  return {(mu - expert_mu) * inverse_sd, (logvar - expert_logvar) * static_cast<T>(0.5), inverse_sd};
}

// The joint moments of one tile as they were before rounding to a 16-bit type: samples are drawn from these.
template <class S>
struct TileMoments {
  alignas(64) Arithmetic<S> mu[kIsHalf<S> ? kTile : 1], logvar[kIsHalf<S> ? kTile : 1];
};

template <class S>
static void poe_sample_kl(const PoE<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  using V = Vec<S>;
  const Weights<T, false> unweighted{nullptr, 0};
  const SeedValue seed = a.seed.read();
  NoiseTile<T> noise;
  TileMoments<S> exact;
  Run<T> joint_mu, joint_logvar;
  for (int64_t r = begin; r < end; ++r) a.kl[r] = 0;
  if (a.expert_kl != nullptr)
    for (int m = 0; m < a.experts.count; ++m)
      for (int64_t r = begin; r < end; ++r) a.expert_kl[m * a.rows + r] = 0;
  for_tiles(begin, end, a.dim, [&](int64_t r0, int64_t r1, int64_t d0, int64_t d1) {
    noise.fill(r0, r1, d0, d1, 0, seed);
    for (int64_t r = r0; r < r1; ++r) {
      const Observed<S> row(a.experts, r, d0);
      const T* eps = noise.row(r);
      const int64_t in_tile = eps - noise.values;
      V kl{};
      for_runs(d1 - d0, [&](int64_t d, int64_t n) {
        const int64_t at = r * a.dim + d0 + d;
        S *mu = a.mu + at, *logvar = a.logvar + at, *z = a.samples > 0 ? a.z + at : nullptr;
        product(row, unweighted, 0, a.prior, d, n,
                [&](int64_t i, int lanes, const Moments<V>& joint) __attribute__((always_inline)) {
                  const ExpAndTail<V> sd = exp_and_tail(joint.logvar * static_cast<T>(0.5));
                  kl += first(kl_to_standard(joint.mu, sd), lanes);
                  store(mu + i, joint.mu, lanes);
                  store(logvar + i, joint.logvar, lanes);
                  if (z != nullptr) store(z + i, fma(sd.value, load(eps + d + i), joint.mu), lanes);
                  if constexpr (kIsHalf<S>) {
                    store(exact.mu + in_tile + d + i, joint.mu, lanes);
                    store(exact.logvar + in_tile + d + i, joint.logvar, lanes);
                  }
                  if (a.expert_kl != nullptr) {
                    store(joint_mu.values + i, joint.mu);
                    store(joint_logvar.values + i, joint.logvar);
                  }
                });
        if (a.expert_kl == nullptr) return;
        for (int m = 0; m < row.count; ++m) {
          V to_expert{};
          for_lanes<S>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
            const FromExpert<V> q = from_expert<T>(load(joint_mu.values + i), load(joint_logvar.values + i),
                                                   load(row.mu[m] + d + i, lanes), load(row.logvar[m] + d + i, lanes));
            to_expert += first(kl_to_standard(q.distance, exp_and_tail(q.log_ratio)), lanes);
          });
          a.expert_kl[row.expert[m] * a.rows + r] += sum(to_expert);
        }
      });
      a.kl[r] += sum(kl);
    }
    for (int64_t k = 1; k < a.samples; ++k) {  // further samples: the joint is still in the cache
      noise.fill(r0, r1, d0, d1, k, seed);
      for (int64_t r = r0; r < r1; ++r) {
        const int64_t at = r * a.dim + d0;
        const T* eps = noise.row(r);
        const auto sample = [&](const auto* mu, const auto* logvar) __attribute__((always_inline)) {
          for_lanes<S>(d1 - d0, [&](int64_t i, int n) __attribute__((always_inline)) {
            const V sd = exp(load(logvar + i, n) * static_cast<T>(0.5));
            store(a.z + k * a.rows * a.dim + at + i, fma(sd, load(eps + i), load(mu + i, n)), n);
          });
        };
        if constexpr (kIsHalf<S>) {
          sample(exact.mu + (eps - noise.values), exact.logvar + (eps - noise.values));
        } else {
          sample(a.mu + at, a.logvar + at);
        }
      }
    }
  });
}

template <class S>
void poe(const PoE<S>& a, int64_t begin, int64_t end) {
  if (a.kl != nullptr) {
    poe_sample_kl(a, begin, end);
  } else if (a.weights != nullptr) {
    product_of_experts<S, true>(a, begin, end);
  } else {
    product_of_experts<S, false>(a, begin, end);
  }
}

// The joint moments of a run, and the gradients of the loss to them.
template <class T>
struct JointRun {
  Run<T> mu, logvar, grad_mu, grad_logvar;
};

// Fills `run` for dims [d, d + n) of row r: what all outputs but expert_kl hand back to the joint moments, then what
// expert_kl does. 16-bit joint moments have lost too much: the product is formed again.
template <class S, bool weighted>
static MMVAE_INLINE void joint_adjoints(const PoEBackward<S>& a, const Observed<S>& row,
                                        const Weights<Arithmetic<S>, weighted>& weights, int64_t r, int64_t d,
                                        int64_t n, NoiseTile<Arithmetic<S>>& noise, JointRun<Arithmetic<S>>& run,
                                        const Arithmetic<S>*& joint_mu, const Arithmetic<S>*& joint_logvar) {
  using T = Arithmetic<S>;
  using V = Vec<S>;
  const int64_t at = r * a.dim + d;
  if constexpr (kIsHalf<S>) {
    product(row, weights, 0, a.prior, d, n,
            [&](int64_t i, int, const Moments<V>& joint) __attribute__((always_inline)) {
              store(run.mu.values + i, joint.mu);
              store(run.logvar.values + i, joint.logvar);
            });
    joint_mu = run.mu.values;
    joint_logvar = run.logvar.values;
  } else {
    joint_mu = a.mu + at;
    joint_logvar = a.logvar + at;
  }
  const V grad_kl = splat<V>(a.grad_kl == nullptr ? T(0) : a.grad_kl[r]);
  for_lanes<S>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    V grad_mu = a.grad_mu == nullptr ? V{} : load(a.grad_mu + at + i, lanes);
    V grad_logvar = a.grad_logvar == nullptr ? V{} : load(a.grad_logvar + at + i, lanes);
    if (a.grad_kl != nullptr) {
      const V variance_minus_1 = exp_minus_1(load(joint_logvar + i, lanes));
      const Moments<V> g = kl_adjoint(grad_kl, load(joint_mu + i, lanes), variance_minus_1);
      grad_mu += g.mu;
      grad_logvar += g.logvar;
    }
    store(run.grad_mu.values + i, grad_mu);
    store(run.grad_logvar.values + i, grad_logvar);
  });
  if (a.grad_z != nullptr) {
    const Samples<S> samples{a.grad_z, a.z, a.samples, a.rows, a.dim, a.seed.read(), Family::normal};
    sample_adjoints(samples, r, d, n, joint_mu, joint_logvar, noise, /*add=*/true, run.grad_mu.values,
                    run.grad_logvar.values);
  }
  if (a.grad_expert_kl == nullptr) return;
  for (int m = 0; m < row.count; ++m) {
    const V grad = splat<V>(a.grad_expert_kl[row.expert[m] * a.rows + r]);
    for_lanes<S>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      const FromExpert<V> q = from_expert<T>(load(joint_mu + i, lanes), load(joint_logvar + i, lanes),
                                             load(row.mu[m] + d + i, lanes), load(row.logvar[m] + d + i, lanes));
      const Moments<V> g = kl_adjoint(grad, q.distance, exp_minus_1(q.log_ratio + q.log_ratio));
      store(run.grad_mu.values + i, fma(g.mu, q.inverse_sd, load(run.grad_mu.values + i)));
      store(run.grad_logvar.values + i, load(run.grad_logvar.values + i) + g.logvar);
    });
  }
}

// What the gradients of the joint (mu, logvar) mean for every expert; with samples, z and the KLs add to them first.
template <class S, bool weighted, bool with_expert_kl>
static void to_experts(const PoEBackward<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  using V = Vec<S>;
  using C = Constants<T>;
  const Weights<T, weighted> weights{a.weights, a.dim};
  JointRun<T> run;
  NoiseTile<T> noise;
  for (int64_t r = begin; r < end; ++r) {
    const Observed<S> row(a.experts, r, 0);
    for (int m = 0, k = 0; m < a.experts.count; ++m) {
      if (k < row.count && row.expert[k] == m) {
        ++k;
        continue;
      }
      memset(a.out.mu_row(m, r), 0, a.dim * sizeof(S));
      memset(a.out.logvar_row(m, r), 0, a.dim * sizeof(S));
    }
    if (row.count == 0) continue;
    for_runs(a.dim, [&](int64_t d, int64_t n) {
      const T *joint_mu, *joint_logvar;
      joint_adjoints(a, row, weights, r, d, n, noise, run, joint_mu, joint_logvar);
      for_groups<S>(n, [&](int64_t group, int lanes, auto vectors) __attribute__((always_inline)) {
        constexpr int U = decltype(vectors)::count;
        V joint_mean[U], joint[U], grad_mu[U], grad_logvar[U];
        for (int u = 0; u < U; ++u) {
          const int64_t i = group + u * kLanes<S>;
          joint_mean[u] = load(joint_mu + i, lanes);
          joint[u] = smaller(splat<V>(C::huge), load(joint_logvar + i, lanes));
          grad_mu[u] = load(run.grad_mu.values + i);
          grad_logvar[u] = load(run.grad_logvar.values + i);
        }
        for (int m = 0; m < row.count; ++m) {
          const int expert = row.expert[m];
          const S *mu = row.mu[m] + d + group, *logvar = row.logvar[m] + d + group;
          S *out_mu = a.out.mu_row(expert, r) + d + group, *out_logvar = a.out.logvar_row(expert, r) + d + group;
#pragma GCC unroll 4
          for (int u = 0; u < U; ++u) {
            const int i = u * kLanes<S>;
            const V lv = load(logvar + i, lanes), own_mu = load(mu + i, lanes);
            V share;  // at most 1
            if constexpr (weighted) {
              share = weights.times_exp(weights.of(expert, d + group + i, lanes), joint[u] - lv);
            } else {
              share = exp_of_negative(joint[u] - lv);
            }
            Moments<V> g = expert_adjoint(share, grad_mu[u], grad_logvar[u], own_mu, joint_mean[u]);
            const auto silent = share == V{};  // no share, no gradient, even where the joint's is infinite
            g.mu = silent ? V{} : g.mu;
            g.logvar = silent ? V{} : g.logvar;
            if (with_expert_kl) {
              const FromExpert<V> q = from_expert<T>(joint_mean[u], load(joint_logvar + group + i, lanes), own_mu, lv);
              const Moments<V> kl = kl_adjoint(splat<V>(a.grad_expert_kl[expert * a.rows + r]), q.distance,
                                               exp_minus_1(q.log_ratio + q.log_ratio));
              g.mu -= kl.mu * q.inverse_sd;
              g.logvar -= fma(kl.mu, q.distance * static_cast<T>(0.5), kl.logvar);
            }
            store(out_mu + i, g.mu, lanes);
            store(out_logvar + i, g.logvar, lanes);
          }
        }
      });
    });
  }
}

template <class S>
void poe_backward(const PoEBackward<S>& a, int64_t begin, int64_t end) {
  if (a.weights != nullptr) {
    to_experts<S, true, false>(a, begin, end);
  } else if (a.grad_expert_kl != nullptr) {
    to_experts<S, false, true>(a, begin, end);
  } else {
    to_experts<S, false, false>(a, begin, end);
  }
}

// d joint / d weight_m is the expert's share without its weight: it does not vanish where the weight does.
template <class S>
void poe_weights_backward(const PoEWeightsBackward<S>& a, int64_t begin_block, int64_t end_block) {
  using T = Arithmetic<S>;
  using V = Vec<S>;
  const PoEBackward<S>& product = a.product;
  const Weights<T, true> weights{product.weights, product.dim};
  JointRun<T> run;
  NoiseTile<T> noise;
  for (int64_t block = begin_block; block < end_block; ++block) {
    T* partial = a.partial + block * product.experts.count * product.dim;
    memset(partial, 0, product.experts.count * product.dim * sizeof(T));
    const int64_t first_row = block * kWeightBlock;
    const int64_t last_row = first_row + kWeightBlock < product.rows ? first_row + kWeightBlock : product.rows;
    for (int64_t r = first_row; r < last_row; ++r) {
      const Observed<S> row(product.experts, r, 0);
      for_runs(product.dim, [&](int64_t d, int64_t n) {
        if (row.count == 0) return;
        const T *joint_mu, *joint_logvar;
        joint_adjoints(product, row, weights, r, d, n, noise, run, joint_mu, joint_logvar);
        for (int m = 0; m < row.count; ++m) {
          const S *mu = row.mu[m] + d, *logvar = row.logvar[m] + d;
          T* out = partial + row.expert[m] * product.dim + d;
          for_lanes<S>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
            const V lv = load(logvar + i, lanes);
            const V joint = load(joint_logvar + i, lanes);
            const V share = exp(joint - lv);
            const V towards = load(run.grad_mu.values + i) * (load(mu + i, lanes) - load(joint_mu + i, lanes));
            const V g = share * (towards - load(run.grad_logvar.values + i));
            // an expert that says nothing whatever its weight, or a product that says nothing: no gradient
            const auto silent =
                (share == V{}) | (lv > splat<V>(Constants<T>::huge)) | (joint > splat<V>(Constants<T>::huge));
            store(out + i, load(out + i, lanes) + (silent ? V{} : g), lanes);
          });
        }
      });
    }
  }
}

MMVAE_FOR_EVERY_TYPE(poe, PoE)
MMVAE_FOR_EVERY_TYPE(poe_backward, PoEBackward)
MMVAE_FOR_EVERY_TYPE(poe_weights_backward, PoEWeightsBackward)

}  // namespace MMVAE_ISA
}  // namespace mmvae
