// log p(x | params) of each row: normal, laplace, bernoulli and categorical, summed over the event.
//
// Floor an element of params: 4 bytes forward, 8 backward (x stays in the L1 cache for all samples). Bernoulli adds one
// exp forward, and one exp and one division backward; a categorical logit one exp each way. Normal and laplace are
// bound by memory; the others within the cache by their exp, beyond it by both.
#include <algorithm>

#include "math.h"
#include "ops.h"

namespace mmvae {
namespace MMVAE_ISA {

// Elements are taken in tiles that fit a few arrays into the L1 cache. At 256 vectors, each of four accumulators
// multiplies 64 of them, and at most 5 more at the end: a product of factors up to 2 cannot overflow.
template <class T>
constexpr int kTileLength = 256 * kLanes<T>;

template <class T>
struct alignas(64) Tile {
  T values[kTileLength<T> + kLanes<T>];  // stores of whole vectors may run over the end
};

// Events of fewer elements than this share tiles with their neighbours: rows follow one another in memory.
template <class T>
constexpr int kShortEvent = 4 * kLanes<T>;

// Elements [first, first + count) of the event of one row, or all of those of consecutive rows.
struct Block {
  int64_t row, end_row, first, count;
};

template <class S>
static MMVAE_INLINE bool missing(const LogLikelihood<S>& a, int64_t row) {
  return a.mask != nullptr && !a.mask[row / a.rows_per_mask];
}

// The observed rows in blocks of up to `length` elements: for (EventBlocks b(...); b.next();) ... b.block ...
// Where a row's blocks begin depends on the shapes alone, so its sums are the same bits whoever its neighbours are.
template <class S>
class EventBlocks {
 public:
  MMVAE_INLINE EventBlocks(const LogLikelihood<S>& a, int64_t begin, int64_t end, int64_t length, bool joined)
      : a_(a), row_(begin), end_(end), length_(length), joined_(joined) {}

  MMVAE_INLINE bool next() {
    if (first_ == 0)
      while (row_ < end_ && (a_.event == 0 || missing(a_, row_))) ++row_;
    if (row_ >= end_) return false;
    const int64_t left = a_.event - first_;
    block = Block{row_, row_ + 1, first_, left < length_ ? left : length_};
    first_ = left <= length_ ? 0 : first_ + length_;
    if (first_ > 0) return true;
    while (joined_ && block.end_row < end_ && block.count + a_.event <= length_ && !missing(a_, block.end_row)) {
      ++block.end_row;
      block.count += a_.event;
    }
    row_ = block.end_row;
    return true;
  }

  Block block;

 private:
  const LogLikelihood<S>& a_;
  int64_t row_, end_, length_, first_ = 0;
  bool joined_;
};

// Zeros for the missing rows of a tensor [samples, N, width].
template <class S, class T>
static void clear_missing(const LogLikelihood<S>& a, int64_t begin, int64_t end, T* out, int64_t samples,
                          int64_t width) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t k = 0; missing(a, row) && k < samples; ++k)
      memset(out + (k * a.rows + row) * width, 0, width * sizeof(T));
}

template <class T>
static MMVAE_INLINE T sum_of(const T* terms, int64_t n) {
  T total = 0;
  if (n < 8) {
    for (int64_t i = 0; i < n; ++i) total += terms[i];
    return total;
  }
  Vec<T> sums[4] = {};
  for_lanes_by_four<T>(
      n, [&](int64_t i, int lanes, int j) __attribute__((always_inline)) { sums[j] += load(terms + i, lanes); });
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// f(row, its share of the block's terms summed)
template <class S, class T, class F>
static MMVAE_INLINE void for_row_sums(const LogLikelihood<S>& a, const Block& b, const T* terms, F f) {
  const int64_t n = b.end_row - b.row > 1 ? a.event : b.count;
  for (int64_t row = b.row; row < b.end_row; ++row, terms += n) f(row, sum_of(terms, n));
}

// out[i] = of_row(row of element i), in whole vectors
template <class S, class T, class F>
static MMVAE_INLINE void spread(const LogLikelihood<S>& a, const Block& b, T* out, F of_row) {
  const int64_t n = b.end_row - b.row > 1 ? a.event : b.count;
  for (int64_t row = b.row; row < b.end_row; ++row, out += n)
    for (int64_t i = 0; i < n; i += kLanes<T>) store(out + i, splat<Vec<T>>(of_row(row)));
}

// --- normal and laplace ----------------------------------------------------------------------------------------------

// log density of d = (x - mean) / scale without -log scale and the constant, and minus its derivative.
struct Normal {
  static constexpr double log_constant = 0.91893853320467274178;  // log sqrt(2 pi)
  template <class V>
  static MMVAE_INLINE V log_density(V d) {
    return d * (d * static_cast<Element<V>>(-0.5));
  }
  template <class V>
  static MMVAE_INLINE V slope(V d) {
    return d;
  }
};

struct Laplace {
  static constexpr double log_constant = 0.69314718055994530942;  // log 2
  template <class V>
  static MMVAE_INLINE V log_density(V d) {
    return -magnitude(d);
  }
  template <class V>
  static MMVAE_INLINE V slope(V d) {  // NaN at NaN
    return d > V{} ? splat<V>(1) : (d < V{} ? splat<V>(-1) : d);
  }
};

// 1 / scale of a block, but finite (a distance of 0 stays 0 at the smallest scales), and the sum (or the terms) of log
// scale: one number, or with `each` one for each element.
template <class S, bool each>
class Scale {
  using T = Arithmetic<S>;
  using V = Vec<T>;

 public:
  explicit Scale(const LogLikelihood<S>& a) : a_(a) {
    if (each) return;
    const double scale = a.scale == nullptr ? a.scale_value : static_cast<double>(*a.scale);
    number_ = splat<V>(static_cast<T>(std::min<double>(1 / scale, Constants<T>::largest)));
    log_number_ = static_cast<T>(::log(scale));
  }

  // Logs are taken of the whole block (one log of a product), element by element, or not at all.
  enum class Logs { none, total, terms };

  MMVAE_INLINE void prepare(const Block& b, int64_t k, Logs logs) {
    if (!each || (k > 0 && a_.scale_sample_stride == 0)) return;
    const T* scale = a_.scale + k * a_.scale_sample_stride + b.row * a_.scale_row_stride + b.first;
    const bool rows_apart = b.end_row - b.row > 1 && a_.scale_row_stride != a_.event;
    const int64_t n = rows_apart ? a_.event : b.count;
    total_ = 0;
    for (int64_t at = 0; at < b.count; at += n, scale += a_.scale_row_stride) invert(scale, n, at, logs);
  }

  MMVAE_INLINE V inverse(int64_t i) const { return each ? load(inverse_.values + i) : number_; }
  MMVAE_INLINE V log(int64_t i) const { return each ? load(log_.values + i) : splat<V>(log_number_); }
  MMVAE_INLINE T total_log(int64_t n) const { return each ? total_ : static_cast<T>(n) * log_number_; }

 private:
  MMVAE_INLINE void invert(const T* scale, int64_t n, int64_t at, Logs logs) {
    using C = Constants<T>;
    LogProduct<V> product[4];
    for_lanes_by_four<T>(n, [&](int64_t i, int lanes, int j) __attribute__((always_inline)) {
      V s = first(load(scale + i, lanes), lanes, 1);
      store(inverse_.values + at + i, smaller(splat<V>(C::largest), 1 / s));
      if (logs == Logs::none) return;
      const auto ordinary = s >= splat<V>(C::smallest) && s <= splat<V>(C::largest);
      V special{};
      if (!all(ordinary)) {  // 0, subnormal, infinite, or not a scale: as the C library has it
        for (int lane = 0; lane < kLanes<T>; ++lane)
          if (!ordinary[lane]) special[lane] = ::log(s[lane]);
        s = ordinary ? s : splat<V>(1);
        total_ += sum(special);
      }
      if (logs == Logs::terms) {
        store(log_.values + at + i, special + MMVAE_ISA::log(s));
      } else {
        product[j].multiply(s);
      }
    });
    if (logs != Logs::total) return;
    for (int j = 1; j < 4; ++j) {
      product[j].fold();
      product[0].fold();
      product[0].multiply(product[j]);
    }
    total_ += sum(product[0].log_of_product());
  }

  const LogLikelihood<S>& a_;
  V number_;
  T log_number_ = 0, total_ = 0;
  Tile<T> inverse_, log_;
};

template <class F, bool each, class S>
class LocationScale {
  using T = Arithmetic<S>;
  using V = Vec<T>;
  using Logs = typename Scale<S, each>::Logs;

 public:
  explicit LocationScale(const LogLikelihood<S>& a) : scale_(a) {}

  MMVAE_INLINE void prepare(const Block& b, int64_t k, bool joined) {
    scale_.prepare(b, k, joined ? Logs::terms : Logs::total);
  }
  MMVAE_INLINE V term(V x, V mean, int64_t i) const {
    return F::log_density((x - mean) * scale_.inverse(i)) - (scale_.log(i) + static_cast<T>(F::log_constant));
  }
  MMVAE_INLINE T total(const T* x, const S* mean, int64_t n) const {
    V sums[4] = {};
    for_lanes_by_four<T>(n, [&](int64_t i, int lanes, int j) __attribute__((always_inline)) {
      const V d = (load(x + i, lanes) - load(mean + i, lanes)) * scale_.inverse(i);
      sums[j] += first(F::log_density(d), lanes);
    });
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3])) -
           (scale_.total_log(n) + static_cast<T>(n) * static_cast<T>(F::log_constant));
  }

 private:
  Scale<S, each> scale_;
};

// --- bernoulli -------------------------------------------------------------------------------------------------------

// x l - log(1 + e^l) = (x l - max(l, 0)) - log(1 + e^-|l|). The second terms' sum is the log of one product, which may
// lose a NaN; the first keeps it.
template <class S>
class Bernoulli {
  using T = Arithmetic<S>;
  using V = Vec<T>;

  static MMVAE_INLINE V linear(V x, V logit) { return fma(x, logit, -larger(logit, V{})); }

 public:
  explicit Bernoulli(const LogLikelihood<S>&) {}

  MMVAE_INLINE void prepare(const Block&, int64_t, bool) {}
  MMVAE_INLINE V term(V x, V logit, int64_t) const {
    return linear(x, logit) - log(1 + exp_of_negative(-magnitude(logit)));
  }
  MMVAE_INLINE T total(const T* x, const S* logits, int64_t n) const {
    const V one = splat<V>(1);
    V sums[4] = {}, product[4] = {one, one, one, one};
    for_lanes_by_four<T>(n, [&](int64_t i, int lanes, int j) __attribute__((always_inline)) {
      const V logit = load(logits + i, lanes);
      sums[j] += linear(load(x + i, lanes), logit);
      product[j] = fma(product[j], first(exp_of_negative(-magnitude(logit)), lanes), product[j]);
    });
    LogProduct<V> all;
    for (int j = 0; j < 4; ++j) all.multiply(product[j]);
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3])) - sum(all.log_of_product());
  }
};

// --- the three of them -----------------------------------------------------------------------------------------------

template <class Density, class S>
static void forward(const LogLikelihood<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  const bool joined = a.event < kShortEvent<T>;
  Density density(a);
  Tile<T> terms;
  for (EventBlocks<S> blocks(a, begin, end, kTileLength<T>, joined); blocks.next();) {
    const Block b = blocks.block;
    const int64_t at = b.row * a.event + b.first;
    const T* x = a.x + at;
    for (int64_t k = 0; k < a.samples; ++k) {
      const S* params = a.params + k * a.rows * a.event + at;
      T* out = a.out + k * a.rows;
      density.prepare(b, k, joined);
      if (!joined) {
        out[b.row] += density.total(x, params, b.count);
        continue;
      }
      for_lanes<T>(b.count, [&](int64_t i, int n) __attribute__((always_inline)) {
        store(terms.values + i, density.term(load(x + i, n), load(params + i, n), i));
      });
      for_row_sums(a, b, terms.values, [&](int64_t row, T total) { out[row] = total; });
    }
  }
}

// What becomes of the gradient to scale: nobody asked; one share a row and sample; summed over the samples; kept.
enum class ToScale { no, row, shared, full };

template <class F, bool each, ToScale to_scale, class S>
static void location_scale_backward(const LogLikelihoodBackward<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  using V = Vec<T>;
  const LogLikelihood<S>& f = a.forward;
  const bool joined = f.event < kShortEvent<T>;
  Scale<S, each> scale(f);
  Tile<T> grads, shares;
  for (EventBlocks<S> blocks(f, begin, end, kTileLength<T>, joined); blocks.next();) {
    const Block b = blocks.block;
    const int64_t at = b.row * f.event + b.first;
    const T* x = f.x + at;
    for (int64_t k = 0; k < f.samples; ++k) {
      const int64_t at_k = k * f.rows * f.event + at;
      const S* mean = f.params + at_k;
      const T* grad = a.grad + k * f.rows;
      S* grad_mean = a.grad_params == nullptr ? nullptr : a.grad_params + at_k;
      T* shares_out = to_scale == ToScale::no    ? nullptr
                      : to_scale == ToScale::row ? shares.values
                                                 : a.grad_scale + (to_scale == ToScale::full ? at_k : at);
      const bool add = to_scale == ToScale::shared && k > 0;
      scale.prepare(b, k, Scale<S, each>::Logs::none);
      if (joined) spread(f, b, grads.values, [&](int64_t row) { return grad[row]; });
      const V grad_of_row = splat<V>(grad[b.row]);
      V sums[4] = {};
      for_lanes_by_four<T>(b.count, [&](int64_t i, int lanes, int j) __attribute__((always_inline)) {
        const V d = (load(x + i, lanes) - load(mean + i, lanes)) * scale.inverse(i);
        const V slope = F::slope(d);
        const V g = (joined ? load(grads.values + i) : grad_of_row) * scale.inverse(i);
        if (grad_mean != nullptr) store(grad_mean + i, g * slope, lanes);
        if (to_scale == ToScale::no) return;
        const V share = fma(d, slope, splat<V>(-1));
        if (to_scale == ToScale::row && !joined) {
          sums[j] += first(share, lanes);
        } else {
          store(shares_out + i, add ? fma(g, share, load(shares_out + i, lanes)) : g * share, lanes);
        }
      });
      if (to_scale != ToScale::row) continue;
      T* out = a.grad_scale + k * f.rows;
      if (joined) {
        for_row_sums(f, b, shares.values, [&](int64_t row, T total) { out[row] = total; });
      } else {
        out[b.row] += sum((sums[0] + sums[1]) + (sums[2] + sums[3])) * (grad[b.row] * scale.inverse(0)[0]);
      }
    }
  }
}

template <class F, class S>
static void location_scale_backward(const LogLikelihoodBackward<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  const LogLikelihood<S>& f = a.forward;
  const bool each = f.scale_step != 0;
  if (a.grad_params != nullptr) clear_missing(f, begin, end, a.grad_params, f.samples, f.event);
  if (a.grad_scale == nullptr) {
    each ? location_scale_backward<F, true, ToScale::no>(a, begin, end)
         : location_scale_backward<F, false, ToScale::no>(a, begin, end);
  } else if (!each) {
    for (int64_t k = 0; k < f.samples; ++k) memset(a.grad_scale + k * f.rows + begin, 0, (end - begin) * sizeof(T));
    location_scale_backward<F, false, ToScale::row>(a, begin, end);
  } else if (f.scale_sample_stride == 0) {
    clear_missing(f, begin, end, a.grad_scale, 1, f.event);
    if (f.samples == 0) memset(a.grad_scale + begin * f.event, 0, (end - begin) * f.event * sizeof(T));
    location_scale_backward<F, true, ToScale::shared>(a, begin, end);
  } else {
    clear_missing(f, begin, end, a.grad_scale, f.samples, f.event);
    location_scale_backward<F, true, ToScale::full>(a, begin, end);
  }
}

template <class S>
static void bernoulli_backward(const LogLikelihoodBackward<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  using V = Vec<T>;
  const LogLikelihood<S>& f = a.forward;
  const bool joined = f.event < kShortEvent<T>;
  Tile<T> grads;
  clear_missing(f, begin, end, a.grad_params, f.samples, f.event);
  for (EventBlocks<S> blocks(f, begin, end, kTileLength<T>, joined); blocks.next();) {
    const Block b = blocks.block;
    const int64_t at = b.row * f.event + b.first;
    const T* x = f.x + at;
    for (int64_t k = 0; k < f.samples; ++k) {
      const T* grad = a.grad + k * f.rows;
      const S* logits = f.params + k * f.rows * f.event + at;
      S* out = a.grad_params + k * f.rows * f.event + at;
      if (joined) spread(f, b, grads.values, [&](int64_t row) { return grad[row]; });
      const V grad_of_row = splat<V>(grad[b.row]);
      for_lanes_by_four<T>(b.count, [&](int64_t i, int lanes, int) __attribute__((always_inline)) {
        const V logit = load(logits + i, lanes);
        const V e = exp_of_negative(-magnitude(logit)), s = 1 / (1 + e);
        const V probability = logit < V{} ? e * s : s;
        const V g = joined ? load(grads.values + i) : grad_of_row;
        store(out + i, g * (load(x + i, lanes) - probability), lanes);
      });
    }
  }
}

// --- categorical -----------------------------------------------------------------------------------------------------

// With few classes, vectors run over the logits of many positions; with more, over the classes of one.
constexpr int64_t kFewClasses = 32;

// How many positions are taken at a time: at most kPositions, and their logits fit a tile if classes are few.
template <class T>
constexpr int kPositions = kTileLength<T> / 16;
template <class T>
static MMVAE_INLINE int64_t positions(int64_t classes) {
  const int64_t fit = kTileLength<T> / (classes > 0 ? classes : 1);
  return classes > kFewClasses || fit > kPositions<T> ? kPositions<T> : fit;
}

// sums[p] = sum of the `size` values of group p
template <class T>
static MMVAE_INLINE void sum_groups(const T* values, int64_t groups, int64_t size, T* sums) {
  for (int64_t p = 0; p < groups; ++p) {
    T total = 0;
    for (int64_t c = 0; c < size; ++c) total += values[p * size + c];
    sums[p] = total;
  }
}

// Where the logits are not beyond these, e^logit needs no shift by the largest: the sum has its full relative accuracy.
template <class T>
struct Safe {
  static constexpr T low = sizeof(T) == 4 ? 1e-25 : 1e-250, high = sizeof(T) == 4 ? 1e30 : 1e250;
};

// For any logits, slowly: the largest, and log sum exp of all after it is taken off.
template <class T>
struct ShiftedSum {
  T shift, log_sum;
};

template <class S>
static ShiftedSum<Arithmetic<S>> shifted_log_sum_exp(const S* logits, int64_t n) {
  using T = Arithmetic<S>;
  using V = Vec<T>;
  const T lowest = -static_cast<T>(INFINITY);
  V high = splat<V>(lowest), sums{};
  for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    high = larger(first(load(logits + i, lanes), lanes, lowest), high);
  });
  T top = lowest;
  for (int i = 0; i < kLanes<T>; ++i) top = high[i] > top ? high[i] : top;
  for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    sums += first(exp(load(logits + i, lanes) - splat<V>(top)), lanes);
  });
  return {top, ::log(sum(sums))};
}

template <class S>
static void categorical(const LogLikelihood<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  using V = Vec<T>;
  const int64_t classes = a.classes;
  Tile<T> exps;
  alignas(64) T sums[kPositions<T>], chosen[kPositions<T>];
  clear_missing(a, begin, end, a.log_p, a.samples, a.event);
  for (EventBlocks<S> blocks(a, begin, end, positions<T>(classes), true); blocks.next();) {
    const Block b = blocks.block;
    const int64_t at = b.row * a.event + b.first, n = b.count;
    const int64_t* x = a.classes_of + at;
    for (int64_t k = 0; k < a.samples; ++k) {
      const S* logits = a.params + (k * a.rows * a.event + at) * classes;
      T* terms = a.log_p + k * a.rows * a.event + at;
      if (classes <= kFewClasses) {
        for_lanes_by_four<T>(n * classes, [&](int64_t i, int lanes, int) __attribute__((always_inline)) {
          store(exps.values + i, exp_within_range(load(logits + i, lanes)));
        });
        sum_groups(exps.values, n, classes, sums);
      } else {
        for (int64_t p = 0; p < n; ++p) {
          V total[4] = {};
          for_lanes_by_four<T>(classes, [&](int64_t i, int lanes, int j) __attribute__((always_inline)) {
            total[j] += first(exp_within_range(load(logits + p * classes + i, lanes)), lanes);
          });
          sums[p] = sum((total[0] + total[1]) + (total[2] + total[3]));
        }
      }
      for (int64_t p = 0; p < n; ++p) chosen[p] = widen(logits[p * classes + x[p]]);
      auto bad = V{} != V{};
      for_lanes<T>(n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
        const V logit = load(chosen + i, lanes), total = first(load(sums + i, lanes), lanes, 1);
        const V probability = exp(logit) / total, term = log(probability);
        const auto good = total >= splat<V>(Safe<T>::low) && total <= splat<V>(Safe<T>::high) &&
                          probability >= splat<V>(Safe<T>::low);
        bad |= ~good;
        store(terms + i, good ? term : splat<V>(static_cast<T>(NAN)), lanes);
      });
      if (any(bad)) {
        for (int64_t p = 0; p < n; ++p) {
          if (terms[p] == terms[p]) continue;
          const ShiftedSum<T> all = shifted_log_sum_exp(logits + p * classes, classes);
          terms[p] = (chosen[p] - all.shift) - all.log_sum;
        }
      }
      T* out = a.out + k * a.rows;
      for_row_sums(a, b, terms, [&](int64_t row, T total) { out[row] += total; });
    }
  }
}

// The probability of class v is e^((logit_v - logit_c) + log p_c) with the chosen class c, whose log p the forward has
// saved: nothing is lost where logits are large beside their differences. Below this log p the difference and it would
// cancel: then the sum is formed again.
constexpr int kUnlikely = -20;

// grad * (1 at the chosen class - the probability)
template <class S>
static void categorical_backward(const LogLikelihoodBackward<S>& a, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  using V = Vec<T>;
  const LogLikelihood<S>& f = a.forward;
  const int64_t classes = f.classes;
  Tile<T> values;
  alignas(64) T grads[kPositions<T> + kLanes<T>], shift[kPositions<T>], log_p[kPositions<T>];
  clear_missing(f, begin, end, a.grad_params, f.samples, f.event * classes);
  for (EventBlocks<S> blocks(f, begin, end, positions<T>(classes), true); blocks.next();) {
    const Block b = blocks.block;
    const int64_t at = b.row * f.event + b.first, n = b.count;
    const int64_t* x = f.classes_of + at;
    for (int64_t k = 0; k < f.samples; ++k) {
      const int64_t at_k = k * f.rows * f.event + at;
      const S* logits = f.params + at_k * classes;
      S* out = a.grad_params + at_k * classes;
      const T* grad = a.grad + k * f.rows;
      spread(f, b, grads, [&](int64_t row) { return grad[row]; });
      for (int64_t p = 0; p < n; ++p) {
        shift[p] = widen(logits[p * classes + x[p]]);
        log_p[p] = f.log_p[at_k + p];
        if (log_p[p] >= kUnlikely) continue;
        const ShiftedSum<T> all = shifted_log_sum_exp(logits + p * classes, classes);
        shift[p] = all.shift;
        log_p[p] = -all.log_sum;
      }
      if (classes > kFewClasses) {
        for (int64_t p = 0; p < n; ++p, logits += classes, out += classes) {
          const V from = splat<V>(shift[p]), of_it = splat<V>(log_p[p]), g = splat<V>(grads[p]);
          for_lanes_by_four<T>(classes, [&](int64_t i, int lanes, int) __attribute__((always_inline)) {
            store(out + i, exp_of_negative((load(logits + i, lanes) - from) + of_it) * -g, lanes);
          });
          store(out + x[p], fma(exp_of_negative((load(logits + x[p], 1) - from) + of_it), -g, g), 1);
        }
        continue;
      }
      for (int64_t p = 0; p < n; ++p) {
        const V from = splat<V>(shift[p]), of_it = splat<V>(log_p[p]);
        for (int64_t c = 0; c < classes; c += kLanes<T>) {
          const int64_t i = p * classes + c, left = n * classes - i;  // what is beyond the position is overwritten
          const int lanes = left < kLanes<T> ? static_cast<int>(left) : kLanes<T>;
          store(values.values + i, (load(logits + i, lanes) - from) + of_it);
        }
      }
      for_lanes_by_four<T>(n * classes, [&](int64_t i, int, int) __attribute__((always_inline)) {
        store(values.values + i, -exp_of_negative(load(values.values + i)));
      });
      for (int64_t p = 0; p < n; ++p) values.values[p * classes + x[p]] += 1;
      const bool one_row = b.end_row - b.row == 1;
      for (int64_t p = 0; !one_row && p < n; ++p)
        for (int64_t c = 0; c < classes; ++c) values.values[p * classes + c] *= grads[p];
      const V g = splat<V>(one_row ? grads[0] : 1);
      for_lanes_by_four<T>(n * classes, [&](int64_t i, int lanes, int) __attribute__((always_inline)) {
        store(out + i, load(values.values + i) * g, lanes);
      });
    }
  }
}

template <class F, class S>
static void location_scale(const LogLikelihood<S>& a, int64_t begin, int64_t end) {
  a.scale_step != 0 ? forward<LocationScale<F, true, S>>(a, begin, end)
                    : forward<LocationScale<F, false, S>>(a, begin, end);
}

template <class S>
void log_likelihood(const LogLikelihood<S>& a, int64_t begin, int64_t end) {
  for (int64_t k = 0; k < a.samples; ++k) memset(a.out + k * a.rows + begin, 0, (end - begin) * sizeof(Arithmetic<S>));
  switch (a.family) {
    case Family::normal:
      return location_scale<Normal>(a, begin, end);
    case Family::laplace:
      return location_scale<Laplace>(a, begin, end);
    case Family::bernoulli:
      return forward<Bernoulli<S>>(a, begin, end);
    case Family::categorical:
      return categorical(a, begin, end);
  }
}

template <class S>
void log_likelihood_backward(const LogLikelihoodBackward<S>& a, int64_t begin, int64_t end) {
  const Family family = a.forward.family;
  if (family == Family::normal) return location_scale_backward<Normal>(a, begin, end);
  if (family == Family::laplace) return location_scale_backward<Laplace>(a, begin, end);
  if (a.grad_params == nullptr) return;
  family == Family::bernoulli ? bernoulli_backward(a, begin, end) : categorical_backward(a, begin, end);
}

MMVAE_FOR_EVERY_TYPE(log_likelihood, LogLikelihood)
MMVAE_FOR_EVERY_TYPE(log_likelihood_backward, LogLikelihoodBackward)

}  // namespace MMVAE_ISA
}  // namespace mmvae
