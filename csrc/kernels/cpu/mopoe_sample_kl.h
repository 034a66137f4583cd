// The MoPoE step: mean KL over a row's available subsets and a sample of one of them. Nothing of size [S, B, D] exists.
//
// Per vector of dimensions, every subset's precision T and precision-weighted mean P follow from its parent's by one
// addition each (the lattice). The KLs' logarithms are taken of products: one log for a hundred subsets and dimensions.
// Precisions are not scaled here: within |logvar| <= kSafe neither they nor squared variances overflow; vectors beyond
// that (or with NaN, or +inf) take a scalar path in double.
// Floor with M experts: 4 (2M + 1) bytes an element forward; it is compute bound (about ten operations a subset).
#pragma once

#include <new>
#include <stdlib.h>

#include "product_of_experts.h"

namespace mmvae {
namespace MMVAE_ISA {

template <class T>
constexpr T kSafe = sizeof(T) == 4 ? 36 : 300;

// The part of the lattice a row can use, kept while consecutive rows observe the same experts.
struct Available {
  const Lattice& lattice;
  int64_t observed = -1;
  int nodes = 0, listed = 0;
  int32_t* node;   // usable nodes, parents first, without the root
  int32_t* index;  // usable listed subsets in the caller's order

  explicit Available(const Lattice& l) : lattice(l) {
    node = static_cast<int32_t*>(malloc(sizeof(int32_t) * (l.nodes + l.listed)));
    if (node == nullptr) throw std::bad_alloc();
    index = node + l.nodes;
  }
  ~Available() { free(node); }
  Available(const Available&) = delete;
  Available& operator=(const Available&) = delete;

  template <class T>
  void look_at(const Observed<T>& row) {
    int64_t now = 0;
    for (int m = 0; m < row.count; ++m) now |= int64_t{1} << row.expert[m];
    if (now == observed) return;
    observed = now;
    nodes = listed = 0;
    for (int i = 1; i < lattice.nodes; ++i)
      if ((lattice.bits[i] & ~now) == 0) node[nodes++] = i;
    for (int s = 0; s < lattice.listed; ++s)
      if ((lattice.bits[lattice.node[s]] & ~now) == 0) index[listed++] = s;
  }
};

// Sums and adjoints of every node for one vector (or scalar) of dimensions.
template <class V>
struct NodeSums {
  V* precision;
  V* weighted_mean;
  V* adj_precision;
  V* adj_weighted_mean;

  explicit NodeSums(int nodes) {
    precision = static_cast<V*>(aligned_alloc(64, (4 * sizeof(V) * nodes + 63) / 64 * 64));
    if (precision == nullptr) throw std::bad_alloc();
    weighted_mean = precision + nodes;
    adj_precision = weighted_mean + nodes;
    adj_weighted_mean = adj_precision + nodes;
    precision[0] = weighted_mean[0] = V{};  // the root: the empty product
  }
  ~NodeSums() { free(precision); }
  NodeSums(const NodeSums&) = delete;
  NodeSums& operator=(const NodeSums&) = delete;
};

template <class V>
struct ExpertTerms {  // by expert number
  V mu[kMaxExperts], precision[kMaxExperts];
};

template <class V>
static MMVAE_INLINE void climb(const Available& row, const ExpertTerms<V>& x, NodeSums<V>& sums) {
  for (int i = 0; i < row.nodes; ++i) {
    const int node = row.node[i], parent = row.lattice.parent[node], m = row.lattice.expert[node];
    sums.precision[node] = sums.precision[parent] + x.precision[m];
    sums.weighted_mean[node] = sums.weighted_mean[parent] + x.precision[m] * x.mu[m];
  }
}

template <class V>
static MMVAE_INLINE V precision_of(const Available& row, const NodeSums<V>& sums, int node) {
  return row.lattice.has_prior[node] ? sums.precision[node] + 1 : sums.precision[node];
}

// Adds the adjoints of (mean KL, sample) to the nodes and hands them down to the experts.
template <class V>
static MMVAE_INLINE void descend(const Available& row, NodeSums<V>& sums, V grad_mean_kl, int chosen, V grad_z, V z,
                                 ExpertTerms<V>& adjoint) {
  const Lattice& l = row.lattice;
  for (int i = 0; i < row.nodes; ++i) {
    const int node = row.node[i];
    sums.adj_precision[node] = sums.adj_weighted_mean[node] = V{};
    if (!l.is_listed[node]) continue;
    const V var = 1 / precision_of(row, sums, node), mean = sums.weighted_mean[node] * var;
    const Natural<V> kl = natural_kl_adjoint(grad_mean_kl, mean, var);
    sums.adj_precision[node] = kl.precision;
    sums.adj_weighted_mean[node] = kl.weighted_mean;
    if (node != chosen) continue;
    const Natural<V> sample = natural_sample_adjoint(grad_z, z, mean, var);
    sums.adj_precision[node] += sample.precision;
    sums.adj_weighted_mean[node] += sample.weighted_mean;
  }
  sums.adj_precision[0] = sums.adj_weighted_mean[0] = V{};
  for (int i = row.nodes - 1; i >= 0; --i) {
    const int node = row.node[i], parent = l.parent[node], m = l.expert[node];
    sums.adj_precision[parent] += sums.adj_precision[node];
    sums.adj_weighted_mean[parent] += sums.adj_weighted_mean[node];
    adjoint.precision[m] += sums.adj_precision[node];
    adjoint.mu[m] += sums.adj_weighted_mean[node];
  }
}

// Whether plain sums of precisions are safe for this vector; loads the experts on the way.
template <class T>
static MMVAE_INLINE bool load_experts(const Observed<T>& row, int64_t i, int n, ExpertTerms<Vec<T>>& x) {
  using V = Vec<T>;
  auto safe = V{} == V{};
  for (int m = 0; m < row.count; ++m) {
    const V logvar = load(row.logvar[m] + i, n);
    safe &= magnitude(logvar) <= splat<V>(kSafe<T>);
    x.mu[row.expert[m]] = load(row.mu[m] + i, n);
    x.precision[row.expert[m]] = exp(-logvar);
  }
  return all(safe);
}

template <class T>
static void load_scalars(const Observed<T>& row, int64_t i, ExpertTerms<double>& x) {
  for (int m = 0; m < row.count; ++m) {
    x.mu[row.expert[m]] = static_cast<double>(row.mu[m][i]);
    x.precision[row.expert[m]] = ::exp(-static_cast<double>(row.logvar[m][i]));
  }
}

template <class T>
static void mopoe_sample_kl(const MoPoE<T>& a, int64_t begin, int64_t end) {
  using V = Vec<T>;
  NoiseTile<T> noise;
  Available usable(a.lattice);
  NodeSums<V> sums(a.lattice.nodes);
  NodeSums<double> scalar_sums(a.lattice.nodes);
  ExpertTerms<V> x;
  ExpertTerms<double> scalar_x;
  const auto choose = [&](int64_t r) {
    return usable.listed == 0 ? int64_t{-1} : usable.index[choose_component(a.seed, r, usable.listed)];
  };
  for (int64_t r = begin; r < end; ++r) {
    a.kl[r] = 0;
    if (a.dim > 0) continue;  // else there are no tiles to choose in
    usable.look_at(Observed<T>(a.experts, r, 0));
    a.subset[r] = choose(r);
  }
  for_tiles(begin, end, a.dim, [&](int64_t r0, int64_t r1, int64_t d0, int64_t d1) {
    noise.fill(r0, r1, d0, d1, 0, a.seed);
    for (int64_t r = r0; r < r1; ++r) {
      const Observed<T> row(a.experts, r, d0);
      usable.look_at(row);
      const T* eps = noise.row(r);
      T* z = a.z + r * a.dim + d0;
      a.subset[r] = choose(r);
      if (a.subset[r] < 0) {  // nothing to go by: the prior
        for_lanes<T>(d1 - d0, [&](int64_t i, int n) __attribute__((always_inline)) { store(z + i, load(eps + i), n); });
        continue;
      }
      const int chosen = a.lattice.node[a.subset[r]];
      V squares{};  // sum of mean^2 + var - 1 over subsets and dimensions
      LogProduct<V> precisions;
      double scalar_kl = 0;
      for_lanes<T>(d1 - d0, [&](int64_t i, int n) __attribute__((always_inline)) {
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
                z[i + lane] = static_cast<T>(mean + ::sqrt(1 / t) * static_cast<double>(eps[i + lane]));
            }
          }
          return;
        }
        climb(usable, x, sums);
        V tile_squares{};
        LogProduct<V> tile_precisions;
        for (int s = 0; s < usable.listed; ++s) {
          const int node = a.lattice.node[usable.index[s]];
          const V t = precision_of(usable, sums, node);
          const V var = 1 / t, mean = sums.weighted_mean[node] * var;
          tile_squares += fma(mean, mean, var - 1);
          tile_precisions.multiply(first(t, n, 1));  // lanes past the end multiply by 1
          if (s % 64 == 63) tile_precisions.fold();
          if (node == chosen) store(z + i, fma(square_root(var), load(eps + i), mean), n);
        }
        squares += first(tile_squares, n);
        precisions.multiply(tile_precisions);
      });
      const double total = static_cast<double>(sum(squares + precisions.log_of_product())) + scalar_kl;
      a.kl[r] += static_cast<T>(0.5 * total / usable.listed);
      if (d1 == a.dim && a.kl[r] < 0) a.kl[r] = 0;  // rounding, near the prior
    }
  });
}

template <class T>
static void mopoe_sample_kl_backward(const MoPoEBackward<T>& a, int64_t begin, int64_t end) {
  using V = Vec<T>;
  Available usable(a.lattice);
  NodeSums<V> sums(a.lattice.nodes);
  NodeSums<double> scalar_sums(a.lattice.nodes);
  ExpertTerms<V> x, adjoint;
  ExpertTerms<double> scalar_x, scalar_adjoint;
  for (int64_t r = begin; r < end; ++r) {
    const Observed<T> row(a.experts, r, 0);
    usable.look_at(row);
    for (int m = 0; m < a.experts.count; ++m) {
      if (usable.listed > 0 && (usable.observed >> m & 1)) continue;
      memset(a.out.mu[m].row(r), 0, a.dim * sizeof(T));
      memset(a.out.logvar[m].row(r), 0, a.dim * sizeof(T));
    }
    if (usable.listed == 0) continue;
    const int chosen = a.lattice.node[a.subset[r]];
    const T grad_mean_kl = a.grad_kl == nullptr ? T(0) : a.grad_kl[r] / usable.listed;
    for_lanes<T>(a.dim, [&](int64_t i, int n) __attribute__((always_inline)) {
      const int64_t at = r * a.dim + i;
      if (!load_experts(row, i, n, x)) {
        for (int lane = 0; lane < n; ++lane) {
          load_scalars(row, i + lane, scalar_x);
          climb(usable, scalar_x, scalar_sums);
          for (int m = 0; m < row.count; ++m)
            scalar_adjoint.mu[row.expert[m]] = scalar_adjoint.precision[row.expert[m]] = 0;
          descend(usable, scalar_sums, static_cast<double>(grad_mean_kl), chosen,
                  a.grad_z == nullptr ? 0. : static_cast<double>(a.grad_z[at + lane]),
                  static_cast<double>(a.z[at + lane]), scalar_adjoint);
          for (int m = 0; m < row.count; ++m) {
            const int e = row.expert[m];
            Moments<double> g = natural_to_expert(scalar_x.precision[e], scalar_x.mu[e], scalar_adjoint.precision[e],
                                                  scalar_adjoint.mu[e]);
            if (scalar_x.precision[e] == 0) g = {0, 0};  // it said nothing
            a.out.mu[e].row(r)[i + lane] = static_cast<T>(g.mu);
            a.out.logvar[e].row(r)[i + lane] = static_cast<T>(g.logvar);
          }
        }
        return;
      }
      climb(usable, x, sums);
      for (int m = 0; m < row.count; ++m) adjoint.mu[row.expert[m]] = adjoint.precision[row.expert[m]] = V{};
      descend(usable, sums, splat<V>(grad_mean_kl), chosen, a.grad_z == nullptr ? V{} : load(a.grad_z + at, n),
              load(a.z + at, n), adjoint);
      for (int m = 0; m < row.count; ++m) {
        const int e = row.expert[m];
        const Moments<V> g = natural_to_expert(x.precision[e], x.mu[e], adjoint.precision[e], adjoint.mu[e]);
        store(a.out.mu[e].row(r) + i, g.mu, n);
        store(a.out.logvar[e].row(r) + i, g.logvar, n);
      }
    });
  }
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
