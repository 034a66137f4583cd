// All products of subsets of the experts at once, from one read of them.
//
// Per vector of dimensions, every subset's precision T and precision-weighted mean P follow from its parent's by one
// addition each (the lattice). Precisions are not scaled here: within |logvar| <= kSafe neither they nor squared
// variances overflow; vectors beyond that (or with NaN, or +inf) take a scalar path in double.
#pragma once

#include <new>
#include <stdlib.h>

#include "product.h"

namespace mmvae {
namespace MMVAE_ISA {

template <class T>
constexpr T kSafe = sizeof(T) == 4 ? 36 : 300;

// The part of the lattice a row can use, kept while consecutive rows observe the same experts.
struct Available {
  const Lattice& lattice;
  int64_t observed = -1;
  int64_t lone = 0;  // experts that are a listed subset by themselves, without the prior
  int nodes = 0, listed = 0, joint = 0;
  int32_t* node;        // usable nodes, parents first, without the root
  int32_t* index;       // usable listed subsets in the caller's order
  int32_t* joint_node;  // the nodes of those that are not lone

  explicit Available(const Lattice& l) : lattice(l) {
    node = static_cast<int32_t*>(malloc(sizeof(int32_t) * (l.nodes + 2 * l.listed)));
    if (node == nullptr) throw std::bad_alloc();
    index = node + l.nodes;
    joint_node = index + l.listed;
  }
  ~Available() { free(node); }
  Available(const Available&) = delete;
  Available& operator=(const Available&) = delete;

  template <class S>
  void look_at(const Observed<S>& row) {
    int64_t now = 0;
    for (int m = 0; m < row.count; ++m) now |= int64_t{1} << row.expert[m];
    if (now == observed) return;
    observed = now;
    nodes = listed = joint = 0;
    for (int i = 1; i < lattice.nodes; ++i)
      if ((lattice.bits[i] & ~now) == 0) node[nodes++] = i;
    lone = 0;
    for (int s = 0; s < lattice.listed; ++s) {
      const int at = lattice.node[s];
      if ((lattice.bits[at] & ~now) != 0) continue;
      index[listed++] = s;
      if (is_lone(at)) {
        lone |= lattice.bits[at];
      } else {
        joint_node[joint++] = at;
      }
    }
  }

  // A subset of one expert: its posterior is that expert, whose own moments are more accurate than the sums'.
  MMVAE_INLINE bool is_lone(int at) const { return lattice.parent[at] == 0 && !lattice.has_prior[at]; }
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
  V mu[kMaxExperts], logvar[kMaxExperts], precision[kMaxExperts];
};

// e^logvar - 1 - logvar without cancellation near 0.
template <class V>
static MMVAE_INLINE V excess_variance(V logvar) {
  return exp_and_tail(logvar).minus_1_minus_x;
}
static MMVAE_INLINE double excess_variance(double logvar) { return ::expm1(logvar) - logvar; }

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

// The adjoint of the mean KL over all subsets but the lone ones, handed down the lattice to the experts' sums.
template <class V>
static MMVAE_INLINE void descend(const Available& row, NodeSums<V>& sums, V grad_mean_kl, ExpertTerms<V>& adjoint) {
  const Lattice& l = row.lattice;
  for (int i = 0; i < row.nodes; ++i) {
    const int node = row.node[i];
    sums.adj_precision[node] = sums.adj_weighted_mean[node] = V{};
    if (!l.is_listed[node] || row.is_lone(node)) continue;
    const V var = 1 / precision_of(row, sums, node), mean = sums.weighted_mean[node] * var;
    const Natural<V> kl = natural_kl_adjoint(grad_mean_kl, mean, var);
    sums.adj_precision[node] = kl.precision;
    sums.adj_weighted_mean[node] = kl.weighted_mean;
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
template <class S>
static MMVAE_INLINE bool load_experts(const Observed<S>& row, int64_t i, int n, ExpertTerms<Vec<S>>& x) {
  using V = Vec<S>;
  auto safe = V{} == V{};
  for (int m = 0; m < row.count; ++m) {
    const V logvar = load(row.logvar[m] + i, n);
    safe &= magnitude(logvar) <= splat<V>(kSafe<Element<V>>);
    x.mu[row.expert[m]] = load(row.mu[m] + i, n);
    x.logvar[row.expert[m]] = logvar;
    x.precision[row.expert[m]] = exp(-logvar);
  }
  return all(safe);
}

template <class S>
static void load_scalars(const Observed<S>& row, int64_t i, ExpertTerms<double>& x) {
  for (int m = 0; m < row.count; ++m) {
    x.mu[row.expert[m]] = static_cast<double>(widen(row.mu[m][i]));
    x.logvar[row.expert[m]] = static_cast<double>(widen(row.logvar[m][i]));
    x.precision[row.expert[m]] = ::exp(-x.logvar[row.expert[m]]);
  }
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
