// The MoPoE step: mean KL over a row's available subsets and a sample of one of them. Nothing of size [S, B, D] exists.
//
// The KLs' logarithms are taken of products: one log for a hundred subsets and dimensions.
// Floor with M experts: 4 (2M + 1) bytes an element forward; it is compute bound (about ten operations a subset).
#include "lattice.h"
#include "ops.h"

namespace mmvae {
namespace MMVAE_ISA {

// The posterior z was drawn from.
template <class V>
struct Chosen {
  int64_t members;  // 0: none
  V mean, var;
};

// Calls f(expert, gradient) for every observed expert.
template <class V, class S, class F>
static MMVAE_INLINE void expert_gradients(const Available& usable, const Observed<S>& row, const ExpertTerms<V>& x,
                                          NodeSums<V>& sums, V grad_mean_kl, const Chosen<V>& chosen, V grad_z,
                                          V sd_eps, F f) {
  ExpertTerms<V> adjoint;
  for (int m = 0; m < row.count; ++m) adjoint.mu[row.expert[m]] = adjoint.precision[row.expert[m]] = V{};
  descend(usable, sums, grad_mean_kl, adjoint);
  for (int m = 0; m < row.count; ++m) {
    const int e = row.expert[m];
    Moments<V> g = natural_to_expert(x.precision[e], x.mu[e], adjoint.precision[e], adjoint.mu[e]);
    if (usable.lone >> e & 1) {
      const Moments<V> own = kl_adjoint(grad_mean_kl, x.mu[e], excess_variance(x.logvar[e]) + x.logvar[e]);
      g.mu += own.mu;
      g.logvar += own.logvar;
    }
    if (chosen.members >> e & 1) {
      const Moments<V> sample = sample_adjoint(grad_z, sd_eps);
      const Moments<V> own =
          expert_adjoint(x.precision[e] * chosen.var, sample.mu, sample.logvar, x.mu[e], chosen.mean);
      g.mu += own.mu;
      g.logvar += own.logvar;
    }
    f(e, g);
  }
}

template <class S>
void mopoe_sample_kl(const MoPoE<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  using V = Vec<S>;
  NoiseTile<T> noise;
  Available usable(a.lattice);
  NodeSums<V> sums(a.lattice.nodes);
  NodeSums<double> scalar_sums(a.lattice.nodes);
  ExpertTerms<V> x;
  ExpertTerms<double> scalar_x;
  const auto choose = [&](int64_t r) {
    return usable.listed == 0 ? int64_t{-1} : usable.index[choose_component(*a.seed, r, usable.listed)];
  };
  for (int64_t r = begin; r < end; ++r) {
    a.kl[r] = 0;
    if (a.dim > 0) continue;  // else there are no tiles to choose in
    usable.look_at(Observed<S>(a.experts, r, 0));
    a.subset[r] = choose(r);
  }
  for_tiles(begin, end, a.dim, [&](int64_t r0, int64_t r1, int64_t d0, int64_t d1) {
    noise.fill(r0, r1, d0, d1, 0, *a.seed);
    for (int64_t r = r0; r < r1; ++r) {
      const Observed<S> row(a.experts, r, d0);
      usable.look_at(row);
      const T* eps = noise.row(r);
      S* z = a.z + r * a.dim + d0;
      a.subset[r] = choose(r);
      if (a.subset[r] < 0) {  // nothing to go by: the prior
        for_lanes<S>(d1 - d0, [&](int64_t i, int n) __attribute__((always_inline)) { store(z + i, load(eps + i), n); });
        continue;
      }
      const int chosen = a.lattice.node[a.subset[r]];
      V squares{};  // sum of mean^2 + var - 1 (lone experts: - logvar) over subsets and dimensions
      LogProduct<V> precisions;
      double scalar_kl = 0;
      for_lanes<S>(d1 - d0, [&](int64_t i, int n) __attribute__((always_inline)) {
        if (!load_experts(row, i, n, x)) {
          for (int lane = 0; lane < n; ++lane) {
            load_scalars(row, i + lane, scalar_x);
            climb(usable, scalar_x, scalar_sums);
            for (int s = 0; s < usable.listed; ++s) {
              const int node = a.lattice.node[usable.index[s]];
              const double t = precision_of(usable, scalar_sums, node);
              const double mean = t == 0 ? 0 : scalar_sums.weighted_mean[node] / t;
              if (t == 0) {
                scalar_kl = static_cast<double>(INFINITY);  // an uninformative posterior is infinitely far from N(0, I)
              } else {
                scalar_kl += mean * mean + 1 / t - 1 + ::log(t);
              }
              if (node == chosen)
                z[i + lane] = narrow<S>(static_cast<T>(mean + ::sqrt(1 / t) * static_cast<double>(eps[i + lane])));
            }
          }
          return;
        }
        climb(usable, x, sums);
        V tile_squares{};
        LogProduct<V> tile_precisions;
        for (int s = 0; s < usable.joint; ++s) {
          const int node = usable.joint_node[s];
          const V t = precision_of(usable, sums, node);
          const V var = 1 / t, mean = sums.weighted_mean[node] * var;
          tile_squares += fma(mean, mean, var - 1);
          tile_precisions.multiply(first(t, n, 1));  // lanes past the end multiply by 1
          if (s % 64 == 63) tile_precisions.fold();
        }
        for (int m = 0; m < row.count; ++m) {
          const int e = row.expert[m];
          if (usable.lone >> e & 1) tile_squares += fma(x.mu[e], x.mu[e], excess_variance(x.logvar[e]));
        }
        const V var = 1 / precision_of(usable, sums, chosen);
        store(z + i, fma(square_root(var), load(eps + i), sums.weighted_mean[chosen] * var), n);
        squares += first(tile_squares, n);
        precisions.multiply(tile_precisions);
      });
      const double total = static_cast<double>(sum(squares + precisions.log_of_product())) + scalar_kl;
      a.kl[r] += static_cast<T>(0.5 * total / usable.listed);
      if (d1 == a.dim && a.kl[r] < 0) a.kl[r] = 0;  // rounding, near the prior
    }
  });
}

template <class S>
void mopoe_sample_kl_backward(const MoPoEBackward<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  using V = Vec<S>;
  Available usable(a.lattice);
  NodeSums<V> sums(a.lattice.nodes);
  NodeSums<double> scalar_sums(a.lattice.nodes);
  ExpertTerms<V> x;
  ExpertTerms<double> scalar_x;
  NoiseTile<T> noise;
  for (int64_t r = begin; r < end; ++r) {
    usable.look_at(Observed<S>(a.experts, r, 0));
    for (int m = 0; m < a.experts.count; ++m) {
      if (usable.listed > 0 && (usable.observed >> m & 1)) continue;
      memset(a.out.mu[m].row(r), 0, a.dim * sizeof(S));
      memset(a.out.logvar[m].row(r), 0, a.dim * sizeof(S));
    }
    if (usable.listed == 0) continue;
    const T grad_mean_kl = a.grad_kl == nullptr ? T(0) : a.grad_kl[r] / usable.listed;
    const int node = a.grad_z == nullptr || a.subset[r] < 0 ? 0 : a.lattice.node[a.subset[r]];
    const int64_t members = a.lattice.bits[node];
    for_runs(a.dim, [&](int64_t d, int64_t n) {
      const Observed<S> row(a.experts, r, d);
      bool drawn = false;
      const auto redrawn = [&]() {  // this run's noise, drawn at most once
        if (!drawn) noise.fill(r, r + 1, d, d + n, 0, *a.seed);
        drawn = true;
        return noise.row(r);
      };
      for_lanes<S>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
        const int64_t at = r * a.dim + d + i;
        if (!load_experts(row, i, lanes, x)) {
          for (int lane = 0; lane < lanes; ++lane) {
            load_scalars(row, i + lane, scalar_x);
            climb(usable, scalar_x, scalar_sums);
            Chosen<double> chosen{members, 0, 0};
            double grad_z = 0, sd_eps = 0;
            if (members != 0) {
              chosen.var = 1 / precision_of(usable, scalar_sums, node);
              chosen.mean = scalar_sums.weighted_mean[node] * chosen.var;
              grad_z = static_cast<double>(widen(a.grad_z[at + lane]));
              sd_eps = ::sqrt(chosen.var) * static_cast<double>(redrawn()[i + lane]);
            }
            expert_gradients(usable, row, scalar_x, scalar_sums, static_cast<double>(grad_mean_kl), chosen, grad_z,
                             sd_eps, [&](int e, Moments<double> g) {
                               if (scalar_x.precision[e] == 0) g = {0, 0};  // it said nothing
                               a.out.mu[e].row(r)[d + i + lane] = narrow<S>(static_cast<T>(g.mu));
                               a.out.logvar[e].row(r)[d + i + lane] = narrow<S>(static_cast<T>(g.logvar));
                             });
          }
          return;
        }
        climb(usable, x, sums);
        Chosen<V> chosen{members, V{}, V{}};
        V grad_z{}, sd_eps{};
        if (members != 0) {
          chosen.var = 1 / precision_of(usable, sums, node);
          chosen.mean = sums.weighted_mean[node] * chosen.var;
          grad_z = load(a.grad_z + at, lanes);
          const auto lost = chosen.var < chosen.mean * chosen.mean * static_cast<T>(1. / (1 << 2 * kLostBits));
          sd_eps = kIsHalf<S> || any(lost) ? square_root(chosen.var) * load(redrawn() + i)
                                           : load(a.z + at, lanes) - chosen.mean;
        }
        expert_gradients(usable, row, x, sums, splat<V>(grad_mean_kl), chosen, grad_z, sd_eps,
                         [&](int e, const Moments<V>& g) __attribute__((always_inline)) {
                           store(a.out.mu[e].row(r) + d + i, g.mu, lanes);
                           store(a.out.logvar[e].row(r) + d + i, g.logvar, lanes);
                         });
      });
    });
  }
}

MMVAE_FOR_EVERY_TYPE(mopoe_sample_kl, MoPoE)
MMVAE_FOR_EVERY_TYPE(mopoe_sample_kl_backward, MoPoEBackward)

}  // namespace MMVAE_ISA
}  // namespace mmvae
