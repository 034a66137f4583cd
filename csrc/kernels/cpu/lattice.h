// All products of subsets of the experts at once, from one read of them.
//
// Every subset's precision T and precision-weighted mean P follow from its parent's by one addition each (the lattice).
// A block of dimensions goes through all subsets before the next one: inner loops have no indirection, the sums stay in
// the cache, and subsets are read and written in long runs (a line of each in turn, at addresses that share their low
// bits, would thrash the caches and tell the prefetchers nothing: blocks of 64 dimensions took twice the time of 512).
//
// Precisions are not scaled: within |logvar| <= kSafe neither they nor products of two of them overflow. Blocks beyond
// that (or with NaN, or +inf) are done in double: "carefully".
#pragma once

#include <new>
#include <stdlib.h>
#include <type_traits>

#include "product.h"

namespace mmvae {
namespace MMVAE_ISA {

constexpr int64_t kMinBlock = 64, kMaxBlock = 512;  // dimensions

template <class T>
constexpr T kSafe = sizeof(T) == 4 ? 36 : 300;

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t n) : data_(static_cast<T*>(aligned_alloc(64, (sizeof(T) * n + 64) / 64 * 64))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Buffer() { free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  MMVAE_INLINE T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

// A subset of several experts (or of one and the prior), whose sums are its parent's plus one expert's.
struct Step {
  int32_t parent, expert;  // slots of the sums
  int32_t slot;            // where its own are kept for its children, or -1
  int32_t subset;          // which of the listed ones it is, or -1: a stepping stone
  bool prior;
};

// The part of the lattice a row can use, kept while consecutive rows observe the same experts.
//
// Sums are kept in slots: slot m is expert m by itself, then come the empty product and subsets.
class Plan {
 public:
  const int nothing;  // the slot of the empty product
  int slots, steps = 0, listed = 0;
  int32_t lone[kMaxExperts];  // which listed subset is this expert by itself, without the prior; -1: none
  bool prior_in_full;         // whether the row has the subset of all experts, and the prior sits there
  bool all_subsets;           // listed, and without the prior but perhaps in the subset of all experts

  Plan(const Lattice& lattice, int experts)
      : nothing(experts),
        slots(experts + 1),
        lattice_(lattice),
        slot_(lattice.nodes),
        subset_(lattice.nodes),
        step_(lattice.nodes),
        usable_(lattice.listed) {
    all_subsets =
        lattice.listed == lattice.nodes - 1 && lattice.nodes == int64_t{1} << experts && !lattice.has_prior[1];
    for (int i = 0; i < lattice.nodes; ++i) slot_[i] = subset_[i] = -1;
    for (int s = 0; s < lattice.listed; ++s) subset_[lattice.node[s]] = s;
    for (int i = 1; i < lattice.nodes; ++i) slot_[lattice.parent[i]] = 0;  // it has children
    slot_[0] = nothing;
    for (int i = 1; i < lattice.nodes; ++i) {
      if (lattice.parent[i] == 0) {
        slot_[i] = lattice.expert[i];
      } else if (slot_[i] == 0) {
        slot_[i] = slots++;
      }
    }
  }

  template <class S>
  void look_at(const Observed<S>& row) {
    int64_t now = 0;
    for (int m = 0; m < row.count; ++m) now |= int64_t{1} << row.expert[m];
    if (now == observed_) return;
    observed_ = now;
    steps = listed = 0;
    for (int m = 0; m < nothing; ++m) lone[m] = -1;
    for (int i = 1; i < lattice_.nodes; ++i) {
      if ((lattice_.bits[i] & ~now) != 0) continue;
      const bool single = lattice_.parent[i] == 0;
      if (single && !lattice_.has_prior[i]) {
        lone[lattice_.expert[i]] = subset_[i];
      } else if (!single || subset_[i] >= 0) {
        step_[steps++] = {slot_[lattice_.parent[i]], lattice_.expert[i], single ? -1 : slot_[i], subset_[i],
                          lattice_.has_prior[i]};
      }
    }
    prior_in_full = false;
    for (int s = 0; s < lattice_.listed; ++s) {
      if (!has(s)) continue;
      usable_[listed++] = s;
      prior_in_full = prior_in_full || has_prior(s);
    }
  }

  // Whether a listed subset is available.
  MMVAE_INLINE bool has(int subset) const { return (lattice_.bits[lattice_.node[subset]] & ~observed_) == 0; }
  MMVAE_INLINE int usable(int64_t i) const { return usable_[i]; }
  MMVAE_INLINE bool is_lone(int subset) const {
    return (members(subset) & (members(subset) - 1)) == 0 && !has_prior(subset);
  }
  MMVAE_INLINE int64_t members(int subset) const { return lattice_.bits[lattice_.node[subset]]; }
  MMVAE_INLINE bool has_prior(int subset) const { return lattice_.has_prior[lattice_.node[subset]]; }
  MMVAE_INLINE const Step& step(int i) const { return step_[i]; }

 private:
  const Lattice& lattice_;
  int64_t observed_ = -1;
  Buffer<int32_t> slot_, subset_;
  Buffer<Step> step_;
  Buffer<int32_t> usable_;  // available listed subsets in the caller's order
};

// The sums of every slot for one block of dimensions and, for the backward, their adjoints.
template <class T>
class Sums {
 public:
  using Scalar = T;
  const int64_t block;  // how many dimensions it holds at most

  Sums(const Plan& plan, bool adjoints, int64_t dims)
      : block(dims), slots_(plan.slots), pitch_((adjoints ? 4 : 2) * dims), data_(slots_ * pitch_) {
    memset(precision(plan.nothing), 0, 2 * block * sizeof(T));
  }
  // of a slot, `block` apart: precision, precision-weighted mean, and the adjoints of both
  MMVAE_INLINE T* precision(int slot) const { return &data_[slot * pitch_]; }
  MMVAE_INLINE T* adjoint(int slot) const { return precision(slot) + 2 * block; }
  void clear_adjoints() const {
    for (int s = 0; s < slots_; ++s) memset(adjoint(s), 0, 2 * block * sizeof(T));
  }

 private:
  int64_t slots_, pitch_;
  Buffer<T> data_;
};

// Fills the experts' slots for dims [d, d + n); whether plain sums of their precisions are safe.
template <class S, class T>
static MMVAE_INLINE bool load_experts(const Observed<S>& row, int64_t d, int64_t n, const Sums<T>& sums) {
  using V = Vec<T>;
  auto safe = V{} == V{};
  for (int m = 0; m < row.count; ++m) {
    T* precision = sums.precision(row.expert[m]);
    for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
      const V logvar = load_as<T>(row.logvar[m] + d + i, lanes), own = exp(-logvar);
      safe &= magnitude(logvar) <= splat<V>(kSafe<T>);
      store(precision + i, own);
      store(precision + sums.block + i, own * load_as<T>(row.mu[m] + d + i, lanes));
    });
  }
  return all(safe);
}

// The sums of blocks of a row's dimensions.
template <class S>
class Blocks {
  using T = Arithmetic<S>;

 public:
  Blocks(const Plan& plan, bool adjoints, int64_t dim)
      : fast_(plan, adjoints, block_size(plan, adjoints, dim)), careful_(plan, adjoints, fast_.block) {}

  // Calls body(d, n, sums, careful) for the dims [d, d + n) of every block, with the sums of the kind that they need.
  template <class F>
  MMVAE_INLINE void over(const Observed<S>& row, int64_t dims, F body) const {
    for (int64_t d = 0; d < dims; d += fast_.block) {
      const int64_t n = d + fast_.block < dims ? fast_.block : dims - d;
      if (load_experts(row, d, n, fast_)) {
        body(d, n, fast_, std::false_type{});
      } else {
        load_experts(row, d, n, careful_);
        body(d, n, careful_, std::true_type{});
      }
    }
  }

 private:
  static int64_t block_size(const Plan& plan, bool adjoints, int64_t dim) {
    constexpr int64_t kCache = 512 << 10;  // bytes, a good part of the L2 cache
    int64_t size = kMaxBlock;
    while (size > kMinBlock && (size / 2 >= dim || plan.slots * (adjoints ? 4 : 2) * size * sizeof(T) > kCache))
      size /= 2;
    return size;
  }

  Sums<T> fast_;
  Sums<double> careful_;
};

// Sets the gradients of a row's missing experts, or of all of them, to 0.
template <class S>
static void clear_gradients(const Experts<S>& experts, const ExpertGrads<S>& out, int64_t r, int64_t dim, bool all) {
  for (int m = 0; m < experts.count; ++m) {
    if (!all && experts.mask.observed(r, m)) continue;
    memset(out.mu_row(m, r), 0, dim * sizeof(S));
    memset(out.logvar_row(m, r), 0, dim * sizeof(S));
  }
}

// T and P of a step, vector by vector, from its parent's; kept for its children where it has any.
template <class T>
struct StepSums {
  const T *parent, *expert;
  T* own;
  int64_t block;
  Vec<T> prior;

  MMVAE_INLINE StepSums(const Sums<T>& sums, const Step& step)
      : parent(sums.precision(step.parent)),
        expert(sums.precision(step.expert)),
        own(step.slot < 0 ? nullptr : sums.precision(step.slot)),
        block(sums.block),
        prior(splat<Vec<T>>(step.prior ? 1 : 0)) {}
  MMVAE_INLINE Natural<Vec<T>> at(int64_t i) const {
    return {load(parent + i) + load(expert + i) + prior, load(parent + block + i) + load(expert + block + i)};
  }
  MMVAE_INLINE Natural<Vec<T>> keep(int64_t i) const {
    const Vec<T> precision = load(parent + i) + load(expert + i);
    const Vec<T> weighted_mean = load(parent + block + i) + load(expert + block + i);
    if (own != nullptr) {
      store(own + i, precision);
      store(own + block + i, weighted_mean);
    }
    return {precision + prior, weighted_mean};
  }
};

// Calls visit(subset, at) for every listed subset that is a step; at(i), to be called for every vector of the block,
// computes T and P there.
template <class T, class F>
static MMVAE_INLINE void climb(const Plan& plan, const Sums<T>& sums, int64_t n, F visit) {
  for (int k = 0; k < plan.steps; ++k) {
    const StepSums<T> step(sums, plan.step(k));
    const auto at = [&](int64_t i) __attribute__((always_inline)) { return step.keep(i); };
    if (plan.step(k).subset < 0) {
      for (int64_t i = 0; i < n; i += kLanes<T>) at(i);
    } else {
      visit(plan.step(k).subset, at);
    }
  }
}

// d/d(precision, weighted mean) of what a posterior's moments have as gradient.
template <class V>
static MMVAE_INLINE Natural<V> to_natural(const Moments<V>& g, V mean, V var) {
  return {var * -fma(mean, g.mu, g.logvar), var * g.mu};
}

// The way up and back down: fills the adjoints of the experts' sums. own(subset, each) hands a listed subset's gradient
// over by calling each(f) once, where f(i, lanes, mean, var, var - 1) is the gradient to the posterior's mean and
// log-variance.
template <class T, class F>
static MMVAE_INLINE void descend(const Plan& plan, const Sums<T>& sums, int64_t n, F own) {
  using V = Vec<T>;
  const int64_t block = sums.block;
  for (int k = 0; k < plan.steps; ++k) {
    const StepSums<T> step(sums, plan.step(k));
    if (step.own == nullptr) continue;
    for (int64_t i = 0; i < n; i += kLanes<T>) step.keep(i);
  }
  sums.clear_adjoints();
  for (int k = plan.steps - 1; k >= 0; --k) {
    const Step& step = plan.step(k);
    const StepSums<T> of_step(sums, step);
    T *to_parent = sums.adjoint(step.parent), *to_expert = sums.adjoint(step.expert);
    const T* children = step.slot < 0 ? nullptr : sums.adjoint(step.slot);
    const auto hand_down = [=](int64_t i, Natural<V> g) __attribute__((always_inline)) {
      if (children != nullptr) {
        g.precision += load(children + i);
        g.weighted_mean += load(children + block + i);
      }
      store(to_parent + i, load(to_parent + i) + g.precision);
      store(to_parent + block + i, load(to_parent + block + i) + g.weighted_mean);
      store(to_expert + i, load(to_expert + i) + g.precision);
      store(to_expert + block + i, load(to_expert + block + i) + g.weighted_mean);
    };
    if (step.subset < 0) {
      for (int64_t i = 0; i < n; i += kLanes<T>) hand_down(i, {V{}, V{}});
      continue;
    }
    own(step.subset, [&](auto gradient) __attribute__((always_inline)) {
      for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
        const Natural<V> q = of_step.at(i);
        const V var = reciprocal(q.precision), mean = q.weighted_mean * var;
        const Moments<V> g = gradient(i, lanes, mean, var, var - 1);
        hand_down(i, to_natural(g, mean, var));
      });
    });
  }
}

// What the adjoints of the experts' sums, and their own as subsets (see descend), mean for the experts of a row.
template <bool careful, class S, class T, class F>
static MMVAE_INLINE void write_gradients(const Plan& plan, const Sums<T>& sums, const Observed<S>& row,
                                         const ExpertGrads<S>& out, int64_t r, int64_t d, int64_t n, F own) {
  using V = Vec<T>;
  for (int m = 0; m < row.count; ++m) {
    const int e = row.expert[m];
    S *grad_mu = out.mu_row(e, r) + d, *grad_logvar = out.logvar_row(e, r) + d;
    const auto write = [&](auto alone) __attribute__((always_inline)) {
      for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
        const V mu = load_as<T>(row.mu[m] + d + i, lanes), precision = load(sums.precision(e) + i);
        const Moments<V> lone = alone(i, lanes, mu);
        const T* adjoint = sums.adjoint(e);
        Moments<V> g = natural_to_expert(precision, mu, load(adjoint + i), load(adjoint + sums.block + i));
        g.mu += lone.mu;
        g.logvar += lone.logvar;
        if (careful) {  // logvar = +inf: it said nothing
          g.mu = precision == V{} ? V{} : g.mu;
          g.logvar = precision == V{} ? V{} : g.logvar;
        }
        store_as(grad_mu + i, g.mu, lanes);
        store_as(grad_logvar + i, g.logvar, lanes);
      });
    };
    if (plan.lone[e] < 0) {
      write([](int64_t, int, V) __attribute__((always_inline)) { return Moments<V>{V{}, V{}}; });
    } else {
      own(plan.lone[e], [&](auto gradient) __attribute__((always_inline)) {
        write([&](int64_t i, int lanes, V mu) __attribute__((always_inline)) {
          const V logvar = load_as<T>(row.logvar[m] + d + i, lanes);
          return gradient(i, lanes, mu, exp(logvar), exp_minus_1(logvar));
        });
      });
    }
  }
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
