// log p(x | params) summed over an event, and its gradients.
//
// A team takes an event of one sample, every thread a pack of elements at a time; categorical elements are shared by
// groups of threads within it. Only the gradient of a scale that the samples share goes through all of them.
#include "density.cuh"

namespace mmvae {
namespace cuda {

// Which (sample, row) a team's number stands for: neighbouring teams take the samples of one row, which share x, or
// where rows are short, neighbouring rows, which lie side by side.
struct Event {
  int64_t sample, row;
};

MMVAE_DEVICE Event event_of(int64_t unit, int64_t rows, int64_t samples, int team) {
  if (samples == 1) return {0, unit};
  if (team < kWarp) return {unit / rows, unit % rows};
  return {unit % samples, unit / samples};
}

template <class S>
MMVAE_DEVICE bool observed(const LogLikelihood<S>& a, int64_t row) {
  return a.mask == nullptr || a.mask[a.rows_per_mask == 1 ? row : row / a.rows_per_mask];
}

// ---- scales
// ----------------------------------------------------------------------------------------------------------

// The scale of a row's elements: one number for all of them, or an array.
template <class S>
struct Scale {
  using A = Arithmetic<S>;
  const A* array;
  A number, constant;  // what an element adds to -log p besides its cost and the array's logarithms

  __device__ __forceinline__ Scale(const LogLikelihood<S>& a, int64_t sample, int64_t row) {
    const bool one = a.scale == nullptr || a.scale_step == 0;
    array = one ? nullptr : a.scale + sample * a.scale_sample_stride + row * a.scale_row_stride;
    number = a.scale == nullptr ? static_cast<A>(a.scale_value) : one ? a.scale[0] : 1;
    constant = log(number) + log_of_constant<A>(a.family);
    number = inverse(number);
  }
  // The elements' scales [p, p + n), inverted, and the sum of their logarithms.
  template <int N>
  __device__ __forceinline__ Pack<A, N> inverses(int64_t p, int64_t n, A& logs) const {
    if (array == nullptr) return splat<A, N>(number);
    Pack<A, N> scale = load_scale<N>(array + p, n);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      logs += log(scale[i]);
      scale[i] = inverse(scale[i]);
    }
    return scale;
  }
};

// ---- logistic
// --------------------------------------------------------------------------------------------------------

// The sum of log(1 + u) over 0 <= u <= 1. In float as the logarithm of a product, 64 factors at a time; a factor that
// rounding would hide is added by its series.
template <class A>
struct LogOnePlus {
  A sum = 0, product = 1;
  __device__ __forceinline__ void add(A u) {
    if (sizeof(A) == 8) {
      sum += log1p(u);
    } else if (u < static_cast<A>(0x1p-12)) {
      sum += u - u * u * static_cast<A>(0.5);
    } else {
      product *= 1 + u;
    }
  }
  __device__ __forceinline__ void collect() {
    if (sizeof(A) == 8) return;
    sum += log(product);
    product = 1;
  }
};

// ---- normal, laplace, bernoulli
// --------------------------------------------------------------------------------------

template <class S>
static __global__ void __launch_bounds__(kBlock) log_likelihood(const __grid_constant__ LogLikelihood<S> a, int team) {
  using A = Arithmetic<S>;
  constexpr int N = kPack<S>;
  for_rows(a.rows * a.samples, team, [&](int64_t unit, int lane, bool valid) {
    const Event at = event_of(valid ? unit : 0, a.rows, a.samples, team);
    const int64_t index = at.sample * a.rows + at.row;
    const A* x_row = a.x + at.row * a.event;
    const S* params_row = a.params + index * a.event;
    A sum = 0;
    if (valid && observed(a, at.row)) {
      if (a.family == Family::bernoulli) {
        LogOnePlus<A> softplus;
        int packs = 0;
        for_packs<N>(a.event, team, lane, [&](int64_t p, int64_t n) {
          const Pack<A, N> x = load<N>(x_row + p, n), logit = load<N>(params_row + p, n);
#pragma unroll
          for (int i = 0; i < N; ++i) {
            if (i >= n) continue;
            sum += x[i] * logit[i] - (logit[i] > 0 ? logit[i] : 0);
            softplus.add(exp(-magnitude(logit[i])));
          }
          if (++packs % (64 / N) == 0) softplus.collect();
        });
        softplus.collect();
        sum -= softplus.sum;
      } else {
        const bool laplace = a.family == Family::laplace;
        const Scale<S> scale(a, at.sample, at.row);
        A logs = 0;
        for_packs<N>(a.event, team, lane, [&](int64_t p, int64_t n) {
          const Pack<A, N> x = load<N>(x_row + p, n), mean = load<N>(params_row + p, n);
          const Pack<A, N> inverses = scale.template inverses<N>(p, n, logs);
#pragma unroll
          for (int i = 0; i < N; ++i) sum -= cost(laplace, (x[i] - mean[i]) * inverses[i]);
        });
        sum -= logs;
        if (lane == 0) sum -= static_cast<A>(a.event) * scale.constant;
      }
    }
    sum = team_sum(sum, team);
    if (valid && lane == 0) a.out[index] = sum;
  });
}

template <class S>
static __global__ void __launch_bounds__(kBlock)
    log_likelihood_backward(const __grid_constant__ LogLikelihoodBackward<S> b, int team, bool shared_scale) {
  using A = Arithmetic<S>;
  constexpr int N = kPack<S>;
  const LogLikelihood<S>& a = b.forward;
  const bool one_scale = b.grad_scale != nullptr && a.scale_step == 0, laplace = a.family == Family::laplace;
  for_rows(shared_scale ? a.rows : a.rows * a.samples, team, [&](int64_t unit, int lane, bool valid) {
    const Event at = event_of(valid ? unit : 0, a.rows, shared_scale ? 1 : a.samples, team);
    const bool there = valid && observed(a, at.row);
    const int64_t index = at.sample * a.rows + at.row, end = shared_scale ? a.samples : at.sample + 1;
    A sum_scale = 0;
    if (valid) {
      const Scale<S> scale(a, at.sample, at.row);
      for_packs<N>(a.event, team, lane, [&](int64_t p, int64_t n) {
        Pack<A, N> x{}, inverses{}, grad_scale{};
        A unused = 0;
        if (there) {
          x = load<N>(a.x + at.row * a.event + p, n);
          if (a.family != Family::bernoulli) inverses = scale.template inverses<N>(p, n, unused);
        }
        for (int64_t k = at.sample; k < end; ++k) {
          const int64_t here = k * a.rows + at.row;
          Pack<A, N> grad_params{};
          if (there) {
            const A grad = b.grad[here];
            const Pack<A, N> params = load<N>(a.params + here * a.event + p, n);
#pragma unroll
            for (int i = 0; i < N; ++i) {
              if (a.family == Family::bernoulli) {
                const A u = exp(-magnitude(params[i]));
                grad_params[i] = grad * (x[i] - (params[i] >= 0 ? 1 : u) / (1 + u));
              } else {
                const A t = (x[i] - params[i]) * inverses[i], pull = slope(laplace, t);
                grad_params[i] = grad * pull * inverses[i];
                grad_scale[i] += i < n ? grad * (pull * t - 1) * inverses[i] : 0;
              }
            }
          }
          if (b.grad_params != nullptr) store<N>(b.grad_params + here * a.event + p, grad_params, n);
        }
        if (one_scale) {
#pragma unroll
          for (int i = 0; i < N; ++i) sum_scale += grad_scale[i];
        } else if (b.grad_scale != nullptr) {
          store<N>(b.grad_scale + index * a.event + p, grad_scale, n);
        }
      });
    }
    if (!one_scale) return;
    sum_scale = team_sum(sum_scale, team);
    if (valid && lane == 0) b.grad_scale[index] = sum_scale;
  });
}

// ---- categorical
// -----------------------------------------------------------------------------------------------------

// log of a sum of exponentials that is added up one by one.
template <class A>
struct LogSumExp {
  A peak = static_cast<A>(sizeof(A) == 4 ? -3.4e38 : -1.7e308), sum = 0;  // of e^(x - peak); -inf changes nothing
  __device__ __forceinline__ void add(A x, A weight = 1) {
    const A e = exp(-magnitude(x - peak));
    const bool higher = x > peak;
    sum = higher ? sum * e + weight : sum + weight * e;
    peak = higher ? x : peak;
  }
  // sum's logarithm; NaN if one of the x is +inf
  __device__ __forceinline__ A log_sum() const { return log(sum) + (peak - peak); }
};

// What all threads of a group have added up.
template <class A>
MMVAE_DEVICE LogSumExp<A> of_group(LogSumExp<A> total, int group) {
  for (int offset = group / 2; offset > 0; offset /= 2) {
    const A peak = __shfl_xor_sync(kAllLanes, total.peak, offset);
    total.add(peak, __shfl_xor_sync(kAllLanes, total.sum, offset));
  }
  return total;
}

// Calls f(v, n) for a thread's share of the classes: v .. v + n; n is N if a row of logits is a number of packs,
// else 1.
template <int N, class F>
MMVAE_DEVICE void for_classes(int64_t classes, int group, int member, F f) {
  const int64_t n = classes % N == 0 ? N : 1;
  for (int64_t v = member * n; v < classes; v += group * n) f(v, n);
}

template <class S>
MMVAE_DEVICE LogSumExp<Arithmetic<S>> log_sum_exp(const S* logits, int64_t classes, int group, int member) {
  constexpr int N = kPack<S>;
  LogSumExp<Arithmetic<S>> total;
  for_classes<N>(classes, group, member, [&](int64_t v, int64_t n) {
    if (n == 1) return total.add(from_memory<S>(logits[v]));
    const Pack<Arithmetic<S>, N> x = load<N>(logits + v, n);
#pragma unroll
    for (int i = 0; i < N; ++i) total.add(x[i]);
  });
  return total;
}

// The groups of a team take the elements of an event in turns. Calls f(p, member, valid) for this thread's, as often
// for every thread of the block.
template <class F>
MMVAE_DEVICE void for_elements(int64_t event, int team, int lane, int group, F f) {
  for (int64_t first = 0; first < event; first += team / group) {
    const int64_t p = first + lane / group;
    f(p, lane % group, p < event);
  }
}

template <class S>
static __global__ void __launch_bounds__(kBlock)
    categorical(const __grid_constant__ LogLikelihood<S> a, int team, int group) {
  using A = Arithmetic<S>;
  for_rows(a.rows * a.samples, team, [&](int64_t unit, int lane, bool valid) {
    const Event at = event_of(valid ? unit : 0, a.rows, a.samples, team);
    const int64_t index = at.sample * a.rows + at.row;
    const bool there = valid && observed(a, at.row);
    A sum = 0;
    for_elements(a.event, team, lane, group, [&](int64_t p, int member, bool inside) {
      const S* logits = a.params + (index * a.event + p) * a.classes;
      LogSumExp<A> total;
      if (there && inside) total = log_sum_exp(logits, a.classes, group, member);
      total = of_group(total, group);
      if (!valid || !inside || member != 0) return;
      A log_p = 0;
      if (there) {
        const int64_t c = a.classes_of[at.row * a.event + p];
        const bool known = c >= 0 && c < a.classes;
        log_p = known ? (from_memory<S>(logits[c]) - total.peak) - total.log_sum() : not_a_number<A>();
      }
      a.log_p[index * a.event + p] = log_p;
      sum += log_p;
    });
    sum = team_sum(sum, team);
    if (valid && lane == 0) a.out[index] = sum;
  });
}

// The probability of class v is e^((logit_v - logit_c) + log p_c) with the chosen class c, whose log p the forward has
// saved: nothing is lost where logits are large beside their differences. Below this log p the difference and it would
// cancel: then the sum is formed again.
constexpr int kUnlikely = -20;

template <class S>
static __global__ void __launch_bounds__(kBlock)
    categorical_backward(const __grid_constant__ LogLikelihoodBackward<S> b, int team, int group) {
  using A = Arithmetic<S>;
  constexpr int N = kPack<S>;
  const LogLikelihood<S>& a = b.forward;
  for_rows(a.rows * a.samples, team, [&](int64_t unit, int lane, bool valid) {
    const Event at = event_of(valid ? unit : 0, a.rows, a.samples, team);
    const int64_t index = at.sample * a.rows + at.row;
    const bool row_there = valid && observed(a, at.row);
    for_elements(a.event, team, lane, group, [&](int64_t p, int member, bool inside) {
      const bool there = row_there && inside;
      const int64_t element = index * a.event + p;
      const S* logits = a.params + element * a.classes;
      S* grad_logits = b.grad_params + element * a.classes;
      A grad = 0, shift = 0, log_p = 0;
      int64_t chosen = -1;
      bool unlikely = false;
      if (there) {
        chosen = a.classes_of[at.row * a.event + p];
        const bool known = chosen >= 0 && chosen < a.classes;
        grad = known ? b.grad[index] : not_a_number<A>();
        shift = known ? from_memory<S>(logits[chosen]) : 0;
        log_p = a.log_p[element];
        unlikely = known && !(log_p >= kUnlikely);
      }
      LogSumExp<A> total;
      if (unlikely) total = log_sum_exp(logits, a.classes, group, member);
      total = of_group(total, group);
      if (unlikely) {
        shift = total.peak;
        log_p = -total.log_sum();
      }
      if (!valid || !inside) return;
      const auto of = [&](A x, int64_t v) { return grad * ((v == chosen ? 1 : 0) - exp((x - shift) + log_p)); };
      for_classes<N>(a.classes, group, member, [&](int64_t v, int64_t n) {
        if (n == 1) {
          grad_logits[v] = to_memory<S>(there ? of(from_memory<S>(logits[v]), v) : 0);
          return;
        }
        Pack<A, N> x{};
        if (there) {
          x = load<N>(logits + v, n);
#pragma unroll
          for (int i = 0; i < N; ++i) x[i] = of(x[i], v + i);
        }
        store<N>(grad_logits + v, x, n);
      });
    });
  });
}

// ---- launches
// --------------------------------------------------------------------------------------------------------

// The threads that share a categorical element: some eight classes each.
static int group_for(int64_t classes) {
  int group = 1;
  while (group < kWarp && group * 8 < classes) group *= 2;
  return group;
}

static int team_of_groups(int64_t event, int group) {
  const int team = team_for(event < kBlock ? event * group : kBlock);
  return team < group ? group : team;
}

template <class S>
static void start(const LogLikelihood<S>& a, cudaStream_t stream) {
  const int64_t units = a.rows * a.samples;
  if (a.family == Family::categorical) {
    const int group = group_for(a.classes), team = team_of_groups(a.event, group);
    start_kernel("log_likelihood", categorical<S>, blocks_for(units, team), stream, a, team, group);
  } else {
    const int team = team_of_packs<S>(a.event);
    start_kernel("log_likelihood", log_likelihood<S>, blocks_for(units, team), stream, a, team);
  }
}

template <class S>
static void start(const LogLikelihoodBackward<S>& b, cudaStream_t stream) {
  const LogLikelihood<S>& a = b.forward;
  const int64_t units = a.rows * a.samples;
  if (a.family == Family::categorical) {
    if (b.grad_params == nullptr) return;
    const int group = group_for(a.classes), team = team_of_groups(a.event, group);
    start_kernel("log_likelihood_backward", categorical_backward<S>, blocks_for(units, team), stream, b, team, group);
  } else {
    const bool shared_scale = b.grad_scale != nullptr && a.scale_step != 0 && a.scale_sample_stride == 0;
    const int team = team_of_packs<S>(a.event);
    start_kernel("log_likelihood_backward", log_likelihood_backward<S>, blocks_for(shared_scale ? a.rows : units, team),
                 stream, b, team, shared_scale);
  }
}

MMVAE_DEFINE_LAUNCH(LogLikelihood)
MMVAE_DEFINE_LAUNCH(LogLikelihoodBackward)

}  // namespace cuda
}  // namespace mmvae
