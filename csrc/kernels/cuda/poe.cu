// product_of_experts, and poe_sample_kl: the product, K samples of it, its KL to N(0, I) and, when asked for, to each
// of its experts, in one pass. The backward forms the product again: what it reads of the experts for that, it needs
// anyway, and 16-bit joint moments would have lost too much.
#include "product.cuh"

namespace mmvae {
namespace cuda {

// The product q in units of one of its experts, as KL(q || expert) and its gradients need it.
template <class A>
struct FromExpert {
  A distance, log_ratio;  // (mu - mu_m) / sd_m, log(sd / sd_m)
  A inverse_sd;
};

template <class A>
MMVAE_DEVICE FromExpert<A> from_expert(A mu, A logvar, A expert_mu, A expert_logvar) {
  const A inverse_sd = exp(expert_logvar * static_cast<A>(-0.5));
  return {(mu - expert_mu) * inverse_sd, (logvar - expert_logvar) * static_cast<A>(0.5), inverse_sd};
}

template <class S>
static __global__ void __launch_bounds__(kBlock) poe(const __grid_constant__ PoE<S> a, int team) {
  using A = Arithmetic<S>;
  constexpr int N = kPack<S>;
  const SeedValue seed = a.samples > 0 ? a.seed.read() : SeedValue{};
  for_rows(a.rows, team, [&](int64_t row, int lane, bool valid) {
    const bool any = valid && any_observed(a.experts, row);
    A kl = 0;
    for (int64_t first = 0; first < a.dim; first += static_cast<int64_t>(team) * N) {
      const int64_t d = first + static_cast<int64_t>(lane) * N, n = valid ? a.dim - d : 0, at = row * a.dim + d;
      Pack<A, N> mu{}, logvar{};
      if (n > 0) {
        product_of<N>(a.experts, a.weights, a.prior, any, row, a.dim, d, n, mu, logvar);
        store<N>(a.mu + at, mu, n);
        store<N>(a.logvar + at, logvar, n);
      }
      if (a.kl == nullptr) continue;
      if (n > 0) {
        Pack<A, N> sd;
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const ExpAndTail<A> e = exp_and_tail(logvar[i] * static_cast<A>(0.5));
          sd[i] = e.value;
          if (i < n) kl += kl_to_standard(mu[i], e);
        }
        for (int64_t k = 0; k < a.samples; ++k) {
          Pack<A, N> z = noise<A, N>(seed, row, k, d);
#pragma unroll
          for (int i = 0; i < N; ++i) z[i] = mu[i] + sd[i] * z[i];
          store<N>(a.z + k * a.rows * a.dim + at, z, n);
        }
      }
      if (a.expert_kl == nullptr) continue;
      for (int m = 0; m < a.experts.count; ++m) {  // every thread: there are barriers in the sum
        A to_expert = 0;
        if (n > 0 && a.experts.mask.observed(row, m)) {
          const Pack<A, N> own_mu = load<N>(a.experts.mu[m].row(row) + d, n);
          const Pack<A, N> own_logvar = load<N>(a.experts.logvar[m].row(row) + d, n);
#pragma unroll
          for (int i = 0; i < N; ++i) {
            const FromExpert<A> q = from_expert(mu[i], logvar[i], own_mu[i], own_logvar[i]);
            if (i < n) to_expert += kl_to_standard(q.distance, exp_and_tail(q.log_ratio));
          }
        }
        to_expert = team_sum(to_expert, team);
        A* out = a.expert_kl + m * a.rows + row;
        if (valid && lane == 0) *out = first == 0 ? to_expert : *out + to_expert;
      }
    }
    if (a.kl == nullptr) return;
    kl = team_sum(kl, team);
    if (valid && lane == 0) a.kl[row] = kl;
    if (a.dim == 0 && a.expert_kl != nullptr && valid)
      for (int m = 0; m < a.experts.count; ++m) a.expert_kl[m * a.rows + row] = 0;
  });
}

// The product over a pack, and the gradients of the loss to it: all outputs' shares.
template <class A, int N>
struct Joint {
  Pack<A, N> mu, logvar, grad_mu, grad_logvar;
};

template <int N, class S>
MMVAE_DEVICE Joint<Arithmetic<S>, N> joint_of(const PoEBackward<S>& a, bool any, const SeedValue& seed, int64_t row,
                                              int64_t d, int64_t n) {
  using A = Arithmetic<S>;
  const int64_t at = row * a.dim + d;
  Joint<A, N> q{};
  product_of<N>(a.experts, a.weights, a.prior, any, row, a.dim, d, n, q.mu, q.logvar);
  if (a.grad_mu != nullptr) q.grad_mu = load<N>(a.grad_mu + at, n);
  if (a.grad_logvar != nullptr) q.grad_logvar = load<N>(a.grad_logvar + at, n);
  if (a.grad_kl != nullptr) {
    const A grad = a.grad_kl[row];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const Moments<A> g = kl_adjoint(grad, q.mu[i], expm1(q.logvar[i]));
      q.grad_mu[i] += g.mu;
      q.grad_logvar[i] += g.logvar;
    }
  }
  if (a.grad_z != nullptr) {
    Pack<A, N> sum_eps{};
    for (int64_t k = 0; k < a.samples; ++k) {
      const Pack<A, N> grad = load<N>(a.grad_z + k * a.rows * a.dim + at, n), eps = noise<A, N>(seed, row, k, d);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        q.grad_mu[i] += grad[i];
        sum_eps[i] += grad[i] * eps[i];
      }
    }
#pragma unroll
    for (int i = 0; i < N; ++i)
      q.grad_logvar[i] += sum_eps[i] * (static_cast<A>(0.5) * exp(q.logvar[i] * static_cast<A>(0.5)));
  }
  if (a.grad_expert_kl != nullptr) {
    for_observed<N>(a.experts, row, d, n, [&](int m, const Pack<A, N>& mu, const Pack<A, N>& logvar) {
      const A grad = a.grad_expert_kl[m * a.rows + row];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const FromExpert<A> from = from_expert(q.mu[i], q.logvar[i], mu[i], logvar[i]);
        const Moments<A> g = kl_adjoint(grad, from.distance, expm1(2 * from.log_ratio));
        q.grad_mu[i] += g.mu * from.inverse_sd;
        q.grad_logvar[i] += g.logvar;
      }
    });
  }
  return q;
}

template <class S>
static __global__ void __launch_bounds__(kBlock) poe_backward(const __grid_constant__ PoEBackward<S> a, int team) {
  using A = Arithmetic<S>;
  constexpr int N = kPack<S>;
  const SeedValue seed = a.grad_z != nullptr ? a.seed.read() : SeedValue{};
  for_rows(a.rows, team, [&](int64_t row, int lane, bool valid) {
    if (!valid) return;
    const bool any = any_observed(a.experts, row);
    for_packs<N>(a.dim, team, lane, [&](int64_t d, int64_t n) {
      for (int m = 0; m < a.experts.count; ++m) {
        if (a.experts.mask.observed(row, m)) continue;
        store<N>(a.out.mu_row(m, row) + d, Pack<A, N>{}, n);
        store<N>(a.out.logvar_row(m, row) + d, Pack<A, N>{}, n);
      }
      if (!any) return;
      const Joint<A, N> q = joint_of<N>(a, any, seed, row, d, n);
      for_observed<N>(a.experts, row, d, n, [&](int m, const Pack<A, N>& mu, const Pack<A, N>& logvar) {
        Pack<A, N> weighted = logvar, grad_mu, grad_logvar;
        if (a.weights != nullptr) weighted = weighted_logvar(logvar, load<N>(a.weights + m * a.dim + d, n));
        const A grad_own_kl = a.grad_expert_kl == nullptr ? A(0) : a.grad_expert_kl[m * a.rows + row];
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const A share = exp(smaller(q.logvar[i], huge<A>()) - weighted[i]);
          Moments<A> g{0, 0};  // no share, no gradient, even where the joint's is infinite
          if (share != 0) g = expert_adjoint(share, q.grad_mu[i], q.grad_logvar[i], mu[i], q.mu[i]);
          if (a.grad_expert_kl != nullptr) {
            const FromExpert<A> from = from_expert(q.mu[i], q.logvar[i], mu[i], logvar[i]);
            const Moments<A> kl = kl_adjoint(grad_own_kl, from.distance, expm1(2 * from.log_ratio));
            g.mu -= kl.mu * from.inverse_sd;
            g.logvar -= kl.logvar + kl.mu * from.distance * static_cast<A>(0.5);
          }
          grad_mu[i] = g.mu;
          grad_logvar[i] = g.logvar;
        }
        store<N>(a.out.mu_row(m, row) + d, grad_mu, n);
        store<N>(a.out.logvar_row(m, row) + d, grad_logvar, n);
      });
    });
  });
}

// d joint / d weight_m is the expert's share without its weight: it does not vanish where the weight does. A team sums
// over a block of rows, for a few experts at a time.
template <class S>
static __global__ void __launch_bounds__(kBlock)
    poe_weights_backward(const __grid_constant__ PoEWeightsBackward<S> a, int team) {
  using A = Arithmetic<S>;
  constexpr int N = 4, kExperts = 4;
  const PoEBackward<S>& p = a.product;
  const int64_t blocks = (p.rows + kWeightBlock - 1) / kWeightBlock;
  for_rows(blocks, team, [&](int64_t block, int lane, bool valid) {
    if (!valid) return;
    const int64_t begin = block * kWeightBlock, end = begin + kWeightBlock < p.rows ? begin + kWeightBlock : p.rows;
    for_packs<N>(p.dim, team, lane, [&](int64_t d, int64_t n) {
      for (int first = 0; first < p.experts.count; first += kExperts) {
        Pack<A, N> sum[kExperts] = {};
        for (int64_t row = begin; row < end; ++row) {
          if (!any_observed(p.experts, row)) continue;
          const Joint<A, N> q = joint_of<N>(p, true, {}, row, d, n);
#pragma unroll
          for (int e = 0; e < kExperts; ++e) {
            const int m = first + e;
            if (m >= p.experts.count || !p.experts.mask.observed(row, m)) continue;
            const Pack<A, N> mu = load<N>(p.experts.mu[m].row(row) + d, n);
            const Pack<A, N> logvar = load<N>(p.experts.logvar[m].row(row) + d, n);
#pragma unroll
            for (int i = 0; i < N; ++i) {
              const A share = exp(q.logvar[i] - logvar[i]);
              // an expert that says nothing whatever its weight, or a product that says nothing: no gradient
              const bool silent = share == 0 || logvar[i] > huge<A>() || q.logvar[i] > huge<A>();
              sum[e][i] += silent ? A(0) : share * (q.grad_mu[i] * (mu[i] - q.mu[i]) - q.grad_logvar[i]);
            }
          }
        }
#pragma unroll
        for (int e = 0; e < kExperts; ++e)
          if (first + e < p.experts.count)
            for (int i = 0; i < N && i < n; ++i)
              a.partial[(block * p.experts.count + first + e) * p.dim + d + i] = sum[e][i];
      }
    });
  });
}

template <class S>
static void start(const PoE<S>& a, cudaStream_t stream) {
  const int team = team_of_packs<S>(a.dim);
  start_kernel("poe", poe<S>, blocks_for(a.rows, team), stream, a, team);
}

template <class S>
static void start(const PoEBackward<S>& a, cudaStream_t stream) {
  const int team = team_of_packs<S>(a.dim);
  start_kernel("poe_backward", poe_backward<S>, blocks_for(a.rows, team), stream, a, team);
}

template <class S>
static void start(const PoEWeightsBackward<S>& a, cudaStream_t stream) {
  const int team = team_for((a.product.dim + 3) / 4);
  const int64_t blocks = (a.product.rows + kWeightBlock - 1) / kWeightBlock;
  start_kernel("poe_weights_backward", poe_weights_backward<S>, blocks_for(blocks, team), stream, a, team);
}

MMVAE_DEFINE_LAUNCH(PoE)
MMVAE_DEFINE_LAUNCH(PoEBackward)
MMVAE_DEFINE_LAUNCH(PoEWeightsBackward)

}  // namespace cuda
}  // namespace mmvae
