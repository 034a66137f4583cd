// z = mu + e^(logvar / 2) * eps; the noise is drawn again in the backward, which is cheaper than reading it.
#include "device.cuh"

namespace mmvae {
namespace cuda {

template <class S>
static __global__ void __launch_bounds__(kBlock) reparameterize(const __grid_constant__ Reparameterize<S> a, int team) {
  using A = Arithmetic<S>;
  constexpr int N = kPack<S>;
  const SeedValue seed = a.seed.read();
  for_rows(a.rows, team, [&](int64_t row, int lane, bool valid) {
    if (!valid) return;
    for_packs<N>(a.dim, team, lane, [&](int64_t d, int64_t n) {
      const Pack<A, N> mu = load<N>(a.mu.row(row) + d, n), logvar = load<N>(a.logvar.row(row) + d, n);
      Pack<A, N> scale;
#pragma unroll
      for (int i = 0; i < N; ++i) scale[i] = exp(logvar[i] * static_cast<A>(0.5));
      for (int64_t k = 0; k < a.samples; ++k) {
        Pack<A, N> z = noise<A, N>(seed, row, k, d, a.family);
#pragma unroll
        for (int i = 0; i < N; ++i) z[i] = mu[i] + scale[i] * z[i];
        store<N>(a.z + (k * a.rows + row) * a.dim + d, z, n);
      }
    });
  });
}

template <class S>
static __global__ void __launch_bounds__(kBlock)
    reparameterize_backward(const __grid_constant__ ReparameterizeBackward<S> a, int team) {
  using A = Arithmetic<S>;
  constexpr int N = kPack<S>;
  const SeedValue seed = a.seed.read();
  for_rows(a.rows, team, [&](int64_t row, int lane, bool valid) {
    if (!valid) return;
    for_packs<N>(a.dim, team, lane, [&](int64_t d, int64_t n) {
      Pack<A, N> sum{}, sum_eps{};
      for (int64_t k = 0; k < a.samples; ++k) {
        const Pack<A, N> grad = load<N>(a.grad_z + (k * a.rows + row) * a.dim + d, n);
        const Pack<A, N> eps = noise<A, N>(seed, row, k, d, a.family);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          sum[i] += grad[i];
          sum_eps[i] += grad[i] * eps[i];
        }
      }
      store<N>(a.grad_mu + row * a.dim + d, sum, n);
      const Pack<A, N> logvar = load<N>(a.logvar.row(row) + d, n);
#pragma unroll
      for (int i = 0; i < N; ++i) sum_eps[i] *= static_cast<A>(0.5) * exp(logvar[i] * static_cast<A>(0.5));
      store<N>(a.grad_logvar + row * a.dim + d, sum_eps, n);
    });
  });
}

template <class S>
static void start(const Reparameterize<S>& a, cudaStream_t stream) {
  const int team = team_of_packs<S>(a.dim);
  start_kernel("reparameterize", reparameterize<S>, blocks_for(a.rows, team), stream, a, team);
}

template <class S>
static void start(const ReparameterizeBackward<S>& a, cudaStream_t stream) {
  const int team = team_of_packs<S>(a.dim);
  start_kernel("reparameterize_backward", reparameterize_backward<S>, blocks_for(a.rows, team), stream, a, team);
}

MMVAE_DEFINE_LAUNCH(Reparameterize)
MMVAE_DEFINE_LAUNCH(ReparameterizeBackward)

}  // namespace cuda
}  // namespace mmvae
