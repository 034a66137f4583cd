// The log density of the mixture of a row's observed experts, and its gradients.
//
// Forward: a team of at most a warp takes some samples of a row and goes through the experts, whose parameters it reads
// once for all of them. Backward: a thread has a pack of dimensions of a row to itself. It goes through the samples
// twice, for the gradient of z, which sums over the experts, and for those of each expert, which sum over the samples:
// neither sum needs another thread, nor registers for every expert.
#include "density.cuh"

namespace mmvae {
namespace cuda {

constexpr double kNegligible = 1e-30;  // responsibilities below it are exact zeros

template <class A>
struct Shares {  // of the densities q in their sum: e^(q - shift) / total, 0 / 0 where all of them are 0
  A shift, total;
};

template <class A>
MMVAE_DEVICE A share(A density, A shift) {
  const A x = exp(density - shift);
  return x < static_cast<A>(kNegligible) ? 0 : x;
}

template <class A>
MMVAE_DEVICE Shares<A> shares(const A* densities, int count) {
  A peak = -infinity<A>(), total = 0;
  for (int m = 0; m < count; ++m) {
    const A q = densities[m];
    if (q > peak || q != q) peak = q;  // NaN wins
  }
  if (peak == -infinity<A>()) peak = 0;
  for (int m = 0; m < count; ++m) total += share(densities[m], peak);
  return {peak, total};
}

// ---- forward
// ---------------------------------------------------------------------------------------------------------

constexpr int kSamplesOfTeam = 8;

template <class S, bool laplace>
static __global__ void __launch_bounds__(kBlock)
    mixture_log_prob(const __grid_constant__ MixtureLogProb<S> a, int team, int64_t tile) {
  using A = Arithmetic<S>;
  constexpr int N = kPack<S>;
  const int count = a.experts.count;
  const int64_t tiles = (a.samples + tile - 1) / tile;
  const A constant = static_cast<A>(a.dim) * log_of_constant<A>(a.family);
  for_rows(a.rows * tiles, team, [&](int64_t unit, int lane, bool valid) {
    const int64_t row = valid ? unit / tiles : 0, first = valid ? unit % tiles * tile : 0;
    const int64_t samples = !valid ? 0 : a.samples - first < tile ? a.samples - first : tile;
    const auto at = [&](int j) { return (first + j) * a.rows + row; };
    int observed = 0;
    for (int m = 0; m <= count; ++m) {  // the last one is the prior, for rows with nothing observed
      const bool prior = m == count;
      if (prior && !__any_sync(kAllLanes, valid && observed == 0)) break;
      const bool there = valid && (prior ? observed == 0 : a.experts.mask.observed(row, m));
      A sum[kSamplesOfTeam] = {}, logs = 0;
      if (there) {
        if (!prior) ++observed;
        for_packs<N>(a.dim, team, lane, [&](int64_t d, int64_t n) {
          Pack<A, N> mu{}, scale = splat<A, N>(1);
          if (!prior) {
            mu = load<N>(a.experts.mu[m].row(row) + d, n);
            scale = load_scale<N>(a.experts.logvar[m].row(row) + d, n);
          }
#pragma unroll
          for (int i = 0; i < N; ++i) {
            logs += log(scale[i]);
            scale[i] = inverse(scale[i]);
          }
#pragma unroll
          for (int j = 0; j < kSamplesOfTeam; ++j) {
            if (j >= samples) continue;
            const Pack<A, N> z = load<N>(a.z + at(j) * a.dim + d, n);
#pragma unroll
            for (int i = 0; i < N; ++i) sum[j] += cost(laplace, (z[i] - mu[i]) * scale[i]);
          }
        });
      }
#pragma unroll
      for (int j = 0; j < kSamplesOfTeam; ++j) {
        if (j >= tile) continue;  // of the whole grid: a sum needs all threads
        const A density = -team_sum(sum[j] + logs, team) - constant;
        if (lane != 0 || j >= samples) continue;
        if (!prior) {
          a.densities[at(j) * count + m] = there ? density : -infinity<A>();
        } else if (there) {
          a.log_prob[at(j)] = density;
        }
      }
    }
    __syncwarp();  // lane 0 has written the densities
    if (observed == 0) return;
    for (int64_t j = lane; j < samples; j += team) {
      const Shares<A> of = shares(a.densities + at(j) * count, count);
      a.log_prob[at(j)] = of.shift + log(of.total) - log(static_cast<A>(observed));
    }
  });
}

// ---- backward
// --------------------------------------------------------------------------------------------------------

constexpr int kCoefficients = 2048;  // a block's, in shared memory
constexpr int kSmallestTeam = 8;     // so that at least two samples of 62 experts fit for every team of a block

template <class S, bool laplace>
static __global__ void __launch_bounds__(kBlock)
    mixture_log_prob_backward(const __grid_constant__ MixtureLogProbBackward<S> a, int team, int tile) {
  using A = Arithmetic<S>;
  constexpr int N = kPack<S>, kHeld = 128 / (N * static_cast<int>(sizeof(A)));  // samples in registers
  __shared__ A of_block[kCoefficients];
  const int count = a.experts.count;
  A* const coefficients = of_block + static_cast<int>(threadIdx.x) / team * (tile * count);
  const int64_t rounds = (a.dim + team * N - 1) / (team * N);
  for_rows(a.rows * rounds, team, [&](int64_t unit, int lane, bool valid) {
    // A team beyond the last row goes along with the others of its warp; it owns no dimensions.
    const int64_t row = valid ? unit / rounds : 0;
    const int64_t d = ((valid ? unit % rounds : 0) * team + lane) * N, n = valid ? a.dim - d : 0;
    bool prior = true;
    for (int m = 0; m < count; ++m) prior = prior && !a.experts.mask.observed(row, m);

    // coefficients[j * count + m]: gradient times responsibility of expert m for sample first + j, j < tile.
    int64_t first_held = -1;
    const auto prepare = [&](int64_t first) {
      if (first == first_held) return;
      first_held = first;
      __syncwarp();  // the last ones have been read
      for (int j = lane; j < tile && first + j < a.samples; j += team) {
        const int64_t at = (first + j) * a.rows + row;
        const A* q = a.densities + at * count;
        const Shares<A> of = shares(q, count);
        const A grad = a.grad_log_prob[at];
        for (int m = 0; m < count; ++m) {
          const A responsibility = of.total == 0 ? 0 : share(q[m], of.shift) / of.total;
          coefficients[j * count + m] = responsibility < static_cast<A>(kNegligible) ? 0 : grad * responsibility;
        }
      }
      __syncwarp();
    };

    if (a.grad_z != nullptr) {
      for (int64_t first = 0; first < a.samples; first += tile) {
        prepare(first);
        const int samples = static_cast<int>(a.samples - first < tile ? a.samples - first : tile);
        for (int j0 = 0; j0 < samples; j0 += kHeld) {
          const auto at = [&](int j) { return (first + j0 + j) * a.rows + row; };
          Pack<A, N> z[kHeld], grad[kHeld];
#pragma unroll
          for (int j = 0; j < kHeld; ++j) {
            grad[j] = Pack<A, N>{};
            if (j0 + j < samples) z[j] = load<N>(a.z + at(j) * a.dim + d, n);
          }
          for (int m = 0; m < count; ++m) {
            if (!a.experts.mask.observed(row, m)) continue;
            const Pack<A, N> mu = load<N>(a.experts.mu[m].row(row) + d, n);
            Pack<A, N> scale = load_scale<N>(a.experts.logvar[m].row(row) + d, n);
#pragma unroll
            for (int i = 0; i < N; ++i) scale[i] = inverse(scale[i]);
#pragma unroll
            for (int j = 0; j < kHeld; ++j) {
              const A c = j0 + j < samples ? coefficients[(j0 + j) * count + m] : 0;
              if (c == 0) continue;
#pragma unroll
              for (int i = 0; i < N; ++i) grad[j][i] -= c * slope(laplace, (z[j][i] - mu[i]) * scale[i]) * scale[i];
            }
          }
#pragma unroll
          for (int j = 0; j < kHeld; ++j) {
            if (j0 + j >= samples) continue;
            if (prior) {
              const A c = a.grad_log_prob[at(j)];
#pragma unroll
              for (int i = 0; i < N; ++i) grad[j][i] = -c * slope(laplace, z[j][i]);
            }
            store<N>(a.grad_z + at(j) * a.dim + d, grad[j], n);
          }
        }
      }
    }

    if (!a.wants_experts) return;
    for (int m = 0; m < count; ++m) {
      const bool there = valid && a.experts.mask.observed(row, m);
      Pack<A, N> mu{}, scale{}, grad_mu{}, grad_scale{};
      if (there) {
        mu = load<N>(a.experts.mu[m].row(row) + d, n);
        scale = load_scale<N>(a.experts.logvar[m].row(row) + d, n);
#pragma unroll
        for (int i = 0; i < N; ++i) scale[i] = inverse(scale[i]);
      }
      for (int64_t first = 0; first < a.samples; first += tile) {
        prepare(first);
        for (int j = 0; there && j < tile && first + j < a.samples; ++j) {
          const A c = coefficients[j * count + m];
          if (c == 0) continue;
          const Pack<A, N> z = load<N>(a.z + ((first + j) * a.rows + row) * a.dim + d, n);
#pragma unroll
          for (int i = 0; i < N; ++i) {
            const A t = (z[i] - mu[i]) * scale[i], pull = c * slope(laplace, t);
            grad_mu[i] += pull;
            grad_scale[i] += pull * t - c;
          }
        }
      }
#pragma unroll
      for (int i = 0; i < N; ++i) {
        grad_mu[i] *= scale[i];
        grad_scale[i] *= scale[i];
      }
      store<N>(a.out.mu_row(m, row) + d, grad_mu, n);
      store<N>(a.out.logvar_row(m, row) + d, grad_scale, n);
    }
  });
}

// ---- launches
// --------------------------------------------------------------------------------------------------------

static int64_t ceil_divide(int64_t x, int64_t y) { return (x + y - 1) / y; }

template <class S>
static void start(const MixtureLogProb<S>& a, cudaStream_t stream) {
  const int64_t packs = ceil_divide(a.dim, kPack<S>), tiles = ceil_divide(a.samples, kSamplesOfTeam);
  const int64_t tile = tiles > 0 ? ceil_divide(a.samples, tiles) : 1;
  const int wanted = team_for(ceil_divide(packs, 2)), team = wanted < kWarp ? wanted : kWarp;
  const auto kernel = a.family == Family::laplace ? mixture_log_prob<S, true> : mixture_log_prob<S, false>;
  start_kernel("mixture_log_prob", kernel, blocks_for(a.rows * tiles, team), stream, a, team, tile);
}

template <class S>
static void start(const MixtureLogProbBackward<S>& a, cudaStream_t stream) {
  const int wanted = team_of_packs<S>(a.dim);
  const int team = wanted < kSmallestTeam ? kSmallestTeam : wanted < kWarp ? wanted : kWarp;
  const int64_t fitting = kCoefficients / (kBlock / team * a.experts.count);
  const int tile = static_cast<int>(a.samples < fitting ? (a.samples > 0 ? a.samples : 1) : fitting);
  const int64_t units = a.rows * ceil_divide(a.dim, team * kPack<S>);
  const auto kernel =
      a.family == Family::laplace ? mixture_log_prob_backward<S, true> : mixture_log_prob_backward<S, false>;
  start_kernel("mixture_log_prob_backward", kernel, blocks_for(units, team), stream, a, team, tile);
}

MMVAE_DEFINE_LAUNCH(MixtureLogProb)
MMVAE_DEFINE_LAUNCH(MixtureLogProbBackward)

}  // namespace cuda
}  // namespace mmvae
