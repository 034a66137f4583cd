// log density of a mixture of a row's observed experts, normal or Laplace, at K points, and its gradients.
//
// Floor in float32: 4 bytes an element of z forward, 8 backward (12 where a store first reads its line), and the
// experts once; 3 operations an element and expert forward, 6 backward. In the cache the forward is bound by those
// operations; beyond it, both by memory. z usually comes from one expert, to which alone its samples are then
// responsible: the backward visits, block by block of samples, the experts with any responsibility. Saved: the
// densities [K, B, M].
#include "math.h"
#include "ops.h"
#include "product.h"

namespace mmvae {
namespace MMVAE_ISA {

constexpr double kNegligible = 1e-30;  // a responsibility below is 0

template <class T>
struct NormalDensity {
  using V = Vec<T>;
  static constexpr double log_normalizer = 0.9189385332046727;  // log sqrt(2 pi)
  static constexpr T factor = -0.5;                             // log density = factor * distance - log scale - ...
  static MMVAE_INLINE V add_distance(V sum, V difference, V inverse_scale) {
    const V t = difference * inverse_scale;
    return fma(t, t, sum);
  }
  // coefficient * -d log density / dz * scale, at t = difference / scale
  static MMVAE_INLINE V slope(V coefficient, V, V t) { return coefficient * t; }
};

template <class T>
struct LaplaceDensity {
  using V = Vec<T>;
  static constexpr double log_normalizer = 0.6931471805599453;  // log 2
  static constexpr T factor = -1;
  static MMVAE_INLINE V add_distance(V sum, V difference, V inverse_scale) {
    return fma(magnitude(difference), inverse_scale, sum);
  }
  static MMVAE_INLINE V slope(V coefficient, V difference, V) {
    const V signed_ = bits<V>(bits<IntOf<V>>(coefficient) ^ (bits<IntOf<V>>(difference) & kSignBit<V>));
    return difference == V{} ? V{} : signed_;
  }
};

// What the kernels keep of one expert for one vector of dimensions.
template <class V>
struct Component {
  V mean, inverse_scale;  // 0, 0 past the end of a row
};
template <class V>
struct ComponentWithGrads : Component<V> {
  V grad_mean, grad_scale;  // sums over the samples, both yet to be divided by the scale
};

// A row's components: its observed experts, or if there are none the prior.
template <class S>
struct Mixture {
  using T = Arithmetic<S>;
  using V = Vec<S>;
  Observed<S> experts;
  int count;
  bool is_prior;
  T log_count;

  Mixture(const Experts<S>& all, int64_t row) : experts(all, row, 0), count(experts.count), is_prior(count == 0) {
    if (is_prior) count = 1;
    log_count = static_cast<T>(::log(static_cast<double>(count)));
  }

  // Fills components[vector][component] for dims [d, d + n); `scale_of(j, V)` sees every component's scales.
  template <class C, class F>
  MMVAE_INLINE void read(int64_t d, int64_t n, C* components, F scale_of) const {
    for (int j = 0; j < count; ++j) {
      C* c = components + j;
      for_lanes<S>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
        const V mean = is_prior ? V{} : load(experts.mu[j] + d + i, lanes);
        const V scale = is_prior ? splat<V>(1) : first(load(experts.logvar[j] + d + i, lanes), lanes, T(1));
        *c = C{};
        c->mean = mean;
        // finite, so that 0 times it is 0 where a scale is subnormal
        c->inverse_scale = first(smaller(splat<V>(Constants<T>::largest), 1 / scale), lanes);
        c += count;
        scale_of(j, scale);
      });
    }
  }
};

// Rows are taken in runs of dimensions, and samples in chunks, whose components and per-sample numbers stay in the L1
// cache, whatever the number of experts.
constexpr int kComponentBytes = 32 << 10, kTableBytes = 8 << 10;
constexpr int64_t kMaxVectors = 64;  // of a run: as many factors as LogProduct takes

// Samples lie B rows apart, each a stream of its own that no hardware prefetcher follows from the one before: the next
// block's are asked for while this one is computed. Past the last sample that is a hint without effect.
template <class S>
static MMVAE_INLINE void prefetch(const S* p) {
  __builtin_prefetch(reinterpret_cast<const void*>(p));
}

template <class T, class C>
struct Tiling {
  static constexpr int n = kLanes<T>;
  static constexpr int max_components = kComponentBytes / sizeof(C), max_table = kTableBytes / sizeof(T);
  static_assert(max_components >= kMaxExperts && max_table >= (kMaxExperts + 2) * n, "a vector of each fits");
  int64_t dims, samples;

  // `columns` numbers a sample
  Tiling(int components, int columns, int64_t dim) {
    int64_t vectors = max_components / components;
    if (vectors > kMaxVectors) vectors = kMaxVectors;
    const int64_t needed = (dim + n - 1) / n, runs = (needed + vectors - 1) / vectors;
    dims = runs == 0 ? n : (needed + runs - 1) / runs * n;
    samples = max_table / columns / n * n;
  }
};

// --- forward --------------------------------------------------------------------------------------------------------

// Sum of log scale: a product of all factors that are ordinary numbers; any other has its own logarithm.
template <class V>
struct SumOfLogs {
  using T = Element<V>;
  LogProduct<V> product;
  T others = 0;

  MMVAE_INLINE void add(V x) {
    const auto ordinary = (x >= splat<V>(Constants<T>::smallest)) & (x <= splat<V>(Constants<T>::largest));
    if (__builtin_expect(!all(ordinary), 0)) {
      for (int i = 0; i < kLanes<T>; ++i)
        if (!ordinary[i]) others += static_cast<T>(::log(static_cast<double>(x[i])));
      x = ordinary ? x : splat<V>(1);
    }
    product.multiply(x);
  }
  MMVAE_INLINE T take() {
    product.fold();
    const T total = sum(product.log_of_product()) + others;
    *this = SumOfLogs{};
    return total;
  }
};

// Adds the distances of P samples, `step` apart, from G components to table[component][sample].
template <class D, int P, int G, class S>
static MMVAE_INLINE void add_distances(const S* z, int64_t step, const Component<Vec<S>>* components, int count,
                                       int64_t n, Arithmetic<S>* table, int64_t columns) {
  using T = Arithmetic<S>;
  using V = Vec<S>;
  V total[kLanes<S>] = {};
  for_lanes<S>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    V point[P];
    MMVAE_UNROLL
    for (int p = 0; p < P; ++p) {
      point[p] = load(z + p * step + i, lanes);
      prefetch(z + (p + P) * step + i);
    }
    MMVAE_UNROLL
    for (int g = 0; g < G; ++g) {
      const Component<V> c = components[g];
      MMVAE_UNROLL
      for (int p = 0; p < P; ++p)
        total[g * P + p] = D::add_distance(total[g * P + p], point[p] - c.mean, c.inverse_scale);
    }
    components += count;
  });
  T distance[kLanes<S>];
  store(distance, sums(total));
  for (int g = 0; g < G; ++g)
    for (int p = 0; p < P; ++p) table[g * columns + p] += distance[g * P + p];
}

// As many sums as fit the registers: G components times P samples.
constexpr int kMaxGroup = 5;
template <class S>
constexpr int kComponentsTogether = kLanes<S> < kMaxGroup ? kLanes<S> : kMaxGroup;

template <class D, int G, class S>
static void add_group(int size, const S* z, int64_t step, int64_t samples, const Component<Vec<S>>* components,
                      int count, int64_t n, Arithmetic<S>* table, int64_t columns) {
  if constexpr (G > 1) {
    if (size < G) return add_group<D, G - 1>(size, z, step, samples, components, count, n, table, columns);
  }
  constexpr int P = kLanes<S> / G < 8 ? kLanes<S> / G : 8;
  int64_t k = 0;
  for (; k + P <= samples; k += P) add_distances<D, P, G>(z + k * step, step, components, count, n, table + k, columns);
  for (; k < samples; ++k) add_distances<D, 1, G>(z + k * step, step, components, count, n, table + k, columns);
}

// From distances to log densities and their log mean, for samples [begin, end) of row r.
template <class D, class S>
static void finish(const MixtureLogProb<S>& a, int64_t r, const Mixture<S>& row, const Arithmetic<S>* log_scale,
                   int64_t begin, int64_t end, Arithmetic<S>* table, int64_t columns) {
  using T = Arithmetic<S>;
  using V = Vec<S>;
  constexpr T infinity = static_cast<T>(INFINITY);
  for_lanes<T>(end - begin, [&](int64_t k, int lanes) __attribute__((always_inline)) {
    V peak = splat<V>(-infinity);
    for (int j = 0; j < row.count; ++j) {
      T* at = table + j * columns + k;
      const V density = fma(load(at), D::factor, splat<V>(log_scale[j]));
      store(at, density);
      peak = larger(density, peak);
    }
    const V shift = peak == splat<V>(-infinity) ? V{} : peak;
    V total{};
    for (int j = 0; j < row.count; ++j) {
      const V share = exp(load(table + j * columns + k) - shift);
      total += share < splat<V>(static_cast<T>(kNegligible)) ? V{} : share;
    }
    const V log_total = total == V{} ? splat<V>(-infinity) : log(total);
    T log_prob[kLanes<T>];
    store(log_prob, shift + (log_total - row.log_count));
    for (int i = 0; i < lanes; ++i) a.log_prob[(begin + k + i) * a.rows + r] = log_prob[i];
  });
  const int experts = a.experts.count;
  for (int m = 0, j = 0; m < experts; ++m) {
    const bool there = !row.is_prior && j < row.count && row.experts.expert[j] == m;
    T* out = a.densities + (begin * a.rows + r) * experts + m;
    for (int64_t k = 0; k < end - begin; ++k) out[k * a.rows * experts] = there ? table[j * columns + k] : -infinity;
    j += there;
  }
}

template <class D, class S>
static void forward(const MixtureLogProb<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  using V = Vec<S>;
  using P = Tiling<T, Component<V>>;
  Component<V> components[P::max_components];
  alignas(64) T table[P::max_table];
  SumOfLogs<V> logs[kMaxExperts];
  const int64_t step = a.rows * a.dim;
  for (int64_t r = begin; r < end; ++r) {
    const Mixture<S> row(a.experts, r);
    const P plan(row.count, row.count, a.dim);
    for (int64_t k = 0; k < a.samples; k += plan.samples) {
      const int64_t samples = k + plan.samples < a.samples ? plan.samples : a.samples - k;
      T log_normalizer[kMaxExperts];
      for (int j = 0; j < row.count; ++j) log_normalizer[j] = static_cast<T>(-D::log_normalizer * a.dim);
      memset(table, 0, row.count * plan.samples * sizeof(T));
      for (int64_t d = 0; d < a.dim; d += plan.dims) {
        const int64_t n = d + plan.dims < a.dim ? plan.dims : a.dim - d;
        row.read(d, n, components, [&](int j, V scale) __attribute__((always_inline)) { logs[j].add(scale); });
        for (int j = 0; j < row.count; ++j) log_normalizer[j] -= logs[j].take();
        const int groups = (row.count + kComponentsTogether<S> - 1) / kComponentsTogether<S>;
        for (int g = 0; g < groups; ++g) {
          const int first = row.count * g / groups, size = row.count * (g + 1) / groups - first;
          add_group<D, kComponentsTogether<S>>(size, a.z + k * step + r * a.dim + d, step, samples, components + first,
                                               row.count, n, table + first * plan.samples, plan.samples);
        }
      }
      finish<D>(a, r, row, log_normalizer, k, k + samples, table, plan.samples);
    }
  }
}

// --- backward -------------------------------------------------------------------------------------------------------

// table[component][sample] = gradient * responsibility, 0 past the end of the chunk; adds to each component's total.
//
// Responsibilities are normalised here, from the densities: beside a large log density log_prob has lost its last
// digits (at 1e6 it is off by 0.06 in float32), and with it they would.
template <class S>
static void coefficients(const MixtureLogProbBackward<S>& a, int64_t r, const Mixture<S>& row, int64_t begin,
                         int64_t end, Arithmetic<S>* table, int64_t columns, Vec<S>* totals) {
  using T = Arithmetic<S>;
  using V = Vec<S>;
  constexpr T infinity = static_cast<T>(INFINITY);
  const int experts = a.experts.count;
  const int64_t n = end - begin, padded = (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  T* grad = table + row.count * columns;
  for (int64_t k = 0; k < padded; ++k) grad[k] = k < n ? a.grad_log_prob[(begin + k) * a.rows + r] : T(0);
  if (row.is_prior) {
    memcpy(table, grad, padded * sizeof(T));
    return;
  }
  for (int j = 0; j < row.count; ++j) {
    const T* density = a.densities + (begin * a.rows + r) * experts + row.experts.expert[j];
    T* c = table + j * columns;
    for (int64_t k = 0; k < padded; ++k) c[k] = k < n ? density[k * a.rows * experts] : -infinity;
  }
  for (int64_t k = 0; k < padded; k += kLanes<T>) {
    V peak = splat<V>(-infinity), total{};
    for (int j = 0; j < row.count; ++j) peak = larger(load(table + j * columns + k), peak);
    const V shift = peak == splat<V>(-infinity) ? V{} : peak;
    for (int j = 0; j < row.count; ++j) {
      T* c = table + j * columns + k;
      V share = exp(load(c) - shift);
      share = share < splat<V>(static_cast<T>(kNegligible)) ? V{} : share;
      total += share;
      store(c, share);
    }
    const V factor = total == V{} ? V{} : load(grad + k) / total;
    for (int j = 0; j < row.count; ++j) {
      T* c = table + j * columns + k;
      const V weighted = load(c) * factor;
      // nor is a subnormal product let through, which arithmetic is slow on
      const V result = magnitude(weighted) < splat<V>(Constants<T>::smallest) ? V{} : weighted;
      store(c, result);
      totals[j] += result;
    }
  }
}

// The gradients of P samples, `step` apart, for the components in `active`: the samples' written, the components'
// added.
template <class D, int P, bool to_experts, class S>
static MMVAE_INLINE void add_gradients(const S* z, S* grad_z, int64_t step, const int* active, int active_count,
                                       const Arithmetic<S>* table, int64_t columns,
                                       ComponentWithGrads<Vec<S>>* components, int count, int64_t n) {
  using V = Vec<S>;
  for_lanes<S>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    V point[P], grad_point[P];
    MMVAE_UNROLL
    for (int p = 0; p < P; ++p) {
      point[p] = load(z + p * step + i, lanes);
      prefetch(z + (p + P) * step + i);
      grad_point[p] = V{};
    }
    for (int j = 0; j < active_count; ++j) {
      ComponentWithGrads<V>& c = components[active[j]];
      const Arithmetic<S>* coefficient = table + active[j] * columns;
      const V mean = c.mean, inverse_scale = c.inverse_scale, minus = -inverse_scale;
      V grad_mean = c.grad_mean, grad_scale = c.grad_scale;
      MMVAE_UNROLL
      for (int p = 0; p < P; ++p) {
        const V difference = point[p] - mean, t = difference * inverse_scale;
        const V slope = D::slope(splat<V>(coefficient[p]), difference, t);
        grad_point[p] = fma(slope, minus, grad_point[p]);
        if (to_experts) {
          grad_mean += slope;
          grad_scale = fma(slope, t, grad_scale);
        }
      }
      if (to_experts) {
        c.grad_mean = grad_mean;
        c.grad_scale = grad_scale;
      }
    }
    components += count;
    if (grad_z == nullptr) return;
    MMVAE_UNROLL
    for (int p = 0; p < P; ++p) store(grad_z + p * step + i, grad_point[p], lanes);
  });
}

template <class D, int P, bool to_experts, class S>
static MMVAE_INLINE void add_gradients(const MixtureLogProbBackward<S>& a, int64_t at, const Arithmetic<S>* table,
                                       int64_t columns, ComponentWithGrads<Vec<S>>* components, int count, int64_t n) {
  int active[kMaxExperts], active_count = 0;
  for (int j = 0; j < count; ++j) {
    bool any = false;
    for (int p = 0; p < P; ++p) any |= table[j * columns + p] != 0;
    active[active_count] = j;
    active_count += any;
  }
  add_gradients<D, P, to_experts>(a.z + at, a.grad_z == nullptr ? nullptr : a.grad_z + at, a.rows * a.dim, active,
                                  active_count, table, columns, components, count, n);
}

template <class D, bool to_experts, class S>
static void backward(const MixtureLogProbBackward<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  using V = Vec<S>;
  using C = ComponentWithGrads<V>;
  using P = Tiling<T, C>;
  constexpr int kSamples = 4;
  C components[P::max_components];
  alignas(64) T table[P::max_table];
  const int64_t step = a.rows * a.dim;
  for (int64_t r = begin; r < end; ++r) {
    const Mixture<S> row(a.experts, r);
    if (to_experts) {
      for (int m = 0, j = 0; m < a.experts.count; ++m) {
        if (j < row.experts.count && row.experts.expert[j] == m) {
          ++j;
          continue;
        }
        memset(a.out.mu_row(m, r), 0, a.dim * sizeof(S));
        memset(a.out.logvar_row(m, r), 0, a.dim * sizeof(S));
      }
    }
    const P plan(row.count, row.count + 2, a.dim);
    for (int64_t d = 0; d < a.dim; d += plan.dims) {
      const int64_t n = d + plan.dims < a.dim ? plan.dims : a.dim - d;
      row.read(d, n, components, [](int, V) {});
      V totals[kMaxExperts];
      for (int j = 0; j < row.count; ++j) totals[j] = V{};
      for (int64_t k0 = 0; k0 < a.samples; k0 += plan.samples) {
        const int64_t k1 = k0 + plan.samples < a.samples ? k0 + plan.samples : a.samples;
        coefficients(a, r, row, k0, k1, table, plan.samples, totals);
        int64_t k = k0;
        for (; k + kSamples <= k1; k += kSamples)
          add_gradients<D, kSamples, to_experts>(a, k * step + r * a.dim + d, table + (k - k0), plan.samples,
                                                 components, row.count, n);
        for (; k < k1; ++k)
          add_gradients<D, 1, to_experts>(a, k * step + r * a.dim + d, table + (k - k0), plan.samples, components,
                                          row.count, n);
      }
      if (!to_experts) continue;
      for (int j = 0; j < row.experts.count; ++j) {
        const V total = splat<V>(sum(totals[j]));
        const int expert = row.experts.expert[j];
        const C* c = components + j;
        for_lanes<S>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
          store(a.out.mu_row(expert, r) + d + i, c->grad_mean * c->inverse_scale, lanes);
          store(a.out.logvar_row(expert, r) + d + i, (c->grad_scale - total) * c->inverse_scale, lanes);
          c += row.count;
        });
      }
    }
  }
}

template <class S>
void mixture_log_prob(const MixtureLogProb<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  a.family == Family::laplace ? forward<LaplaceDensity<T>>(a, begin, end) : forward<NormalDensity<T>>(a, begin, end);
}

template <class S>
void mixture_log_prob_backward(const MixtureLogProbBackward<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  if (a.family == Family::laplace) {
    a.wants_experts ? backward<LaplaceDensity<T>, true>(a, begin, end)
                    : backward<LaplaceDensity<T>, false>(a, begin, end);
  } else {
    a.wants_experts ? backward<NormalDensity<T>, true>(a, begin, end)
                    : backward<NormalDensity<T>, false>(a, begin, end);
  }
}

MMVAE_FOR_EVERY_TYPE(mixture_log_prob, MixtureLogProb)
MMVAE_FOR_EVERY_TYPE(mixture_log_prob_backward, MixtureLogProbBackward)

}  // namespace MMVAE_ISA
}  // namespace mmvae
