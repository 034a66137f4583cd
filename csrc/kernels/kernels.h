// The plain interface of the kernels: raw pointers, sizes and strides, nothing of torch, NumPy or Python.
//
// S is the element type in memory (float, double, bfloat16, float16), A = Arithmetic<S> the one of arithmetic, KLs and
// log-probabilities. Rows are independent: a CPU kernel processes rows [begin, end), so callers split them over threads
// as they like and get the same bits; a CUDA launch processes them all. Strides count elements; the last dimension is
// always contiguous. A pointer documented "or nullptr" is an absent input, or an output nobody asked for.
#pragma once

#include <stdint.h>

#include "half.h"
#include "seed.h"
#include "subsets.h"

namespace mmvae {

constexpr int kMaxExperts = 62;  // a subset of experts is a bitmask in an int64

enum class Family : int32_t { normal = 0, laplace = 1, bernoulli = 2, categorical = 3 };

template <class T>
struct Rows {  // a matrix [B, D] whose rows lie `stride` apart
  T* data;
  int64_t stride;
  MMVAE_HD T* row(int64_t r) const { return data + r * stride; }
};

struct Mask {  // bool [B, M], true = observed; data == nullptr: all are
  const bool* data;
  int64_t row_stride, expert_stride;
  MMVAE_HD bool observed(int64_t row, int expert) const {
    return data == nullptr || data[row * row_stride + expert * expert_stride];
  }
};

template <class S>
struct Experts {
  int count;
  Rows<const S> mu[kMaxExperts], logvar[kMaxExperts];
  Mask mask;
};

// The gradients of the experts, each contiguous [B, D]. (With a stride for each, the arguments would be more than the
// 4096 bytes that every CUDA driver passes to a kernel.)
template <class S>
struct ExpertGrads {
  int64_t dim;
  S *mu[kMaxExperts], *logvar[kMaxExperts];
  MMVAE_HD S* mu_row(int expert, int64_t r) const { return mu[expert] + r * dim; }
  MMVAE_HD S* logvar_row(int expert, int64_t r) const { return logvar[expert] + r * dim; }
};

template <class S>
struct Reparameterize {
  Rows<const S> mu, logvar;
  int64_t rows, dim, samples;
  Seed seed;
  Family family;  // normal or laplace
  S* z;           // [K, B, D]
};

template <class S>
struct ReparameterizeBackward {
  const S* grad_z;  // [K, B, D]
  const S* z;       // [K, B, D]
  Rows<const S> mu, logvar;
  int64_t rows, dim, samples;
  Seed seed;
  Family family;
  S* grad_mu;      // [B, D]
  S* grad_logvar;  // [B, D]
};

// KL of diagonal Gaussians or Laplace distributions. A prior whose data is nullptr is 0.
template <class S>
struct Divergence {
  Rows<const S> mu, logvar, prior_mu, prior_logvar;
  int64_t rows, dim;
  Family family;      // normal or laplace
  Arithmetic<S>* kl;  // [B]
};

template <class S>
struct DivergenceBackward {
  const Arithmetic<S>* grad_kl;  // [B]
  Rows<const S> mu, logvar, prior_mu, prior_logvar;
  int64_t rows, dim;
  Family family;
  S* grad_mu;            // [B, D]
  S* grad_logvar;        // [B, D]
  S* grad_prior_mu;      // [B, D] or nullptr
  S* grad_prior_logvar;  // [B, D] or nullptr
};

// product_of_experts, and with z and kl poe_sample_kl.
template <class S>
struct PoE {
  Experts<S> experts;
  const Arithmetic<S>* weights;  // [M, D] or nullptr = 1; for product_of_experts alone
  bool prior;
  int64_t rows, dim;
  S* mu;      // [B, D]
  S* logvar;  // [B, D]
  int64_t samples;
  Seed seed;
  S* z;                      // [K, B, D]
  Arithmetic<S>* kl;         // [B]; nullptr: product_of_experts
  Arithmetic<S>* expert_kl;  // [M, B] or nullptr
};

template <class S>
struct PoEBackward {
  Experts<S> experts;
  const Arithmetic<S>* weights;  // [M, D] or nullptr
  bool prior;
  int64_t rows, dim;
  const S* mu;           // joint [B, D]
  const S* logvar;       // joint [B, D]
  const S* grad_mu;      // [B, D] or nullptr = 0
  const S* grad_logvar;  // [B, D] or nullptr = 0
  ExpertGrads<S> out;
  int64_t samples;
  Seed seed;
  const S* z;                           // [K, B, D] or nullptr: product_of_experts
  const S* grad_z;                      // [K, B, D] or nullptr = 0
  const Arithmetic<S>* grad_kl;         // [B] or nullptr = 0
  const Arithmetic<S>* grad_expert_kl;  // [M, B] or nullptr = 0
};

// The gradient of product_of_experts to its weights: one partial sum for every block of kWeightBlock rows.
constexpr int64_t kWeightBlock = 64;
template <class S>
struct PoEWeightsBackward {
  PoEBackward<S> product;
  Arithmetic<S>* partial;  // [ceil(B / kWeightBlock), M, D]
};

// Subsets that are not available in a row get the prior: mu 0, logvar 0, kl 0.
template <class S>
struct SubsetPosteriors {
  Experts<S> experts;
  KernelSubsets subsets;
  int64_t rows, dim;
  S* mu;              // [S, B, D]
  S* logvar;          // [S, B, D]
  Arithmetic<S>* kl;  // [S, B]
  bool* available;    // [S, B]
};

template <class S>
struct SubsetPosteriorsBackward {
  Experts<S> experts;
  KernelSubsets subsets;
  int64_t rows, dim;
  const S* grad_mu;              // [S, B, D] or nullptr = 0
  const S* grad_logvar;          // [S, B, D] or nullptr = 0
  const Arithmetic<S>* grad_kl;  // [S, B] or nullptr = 0
  ExpertGrads<S> out;
};

template <class S>
struct MoPoE {
  Experts<S> experts;
  KernelSubsets subsets;
  int64_t rows, dim;
  Seed seed;
  S* z;               // [B, D]
  Arithmetic<S>* kl;  // [B]
  int64_t* subset;    // [B] index into the listed subsets, -1: none available
};

template <class S>
struct MoPoEBackward {
  Experts<S> experts;
  KernelSubsets subsets;
  int64_t rows, dim;
  Seed seed;
  const S* z;
  const int64_t* subset;
  const S* grad_z;               // or nullptr = 0
  const Arithmetic<S>* grad_kl;  // or nullptr = 0
  ExpertGrads<S> out;
};

// log of the mean density of a row's observed experts at z; where none is observed, the log density of the prior
// (mean 0, scale 1). experts.logvar holds scales: standard deviations, or Laplace scales.
template <class S>
struct MixtureLogProb {
  Experts<S> experts;
  Family family;  // normal or laplace
  int64_t rows, dim, samples;
  const S* z;                // [K, B, D]
  Arithmetic<S>* log_prob;   // [K, B]
  Arithmetic<S>* densities;  // [K, B, M] log q_m(z), -inf where m is missing
};

template <class S>
struct MixtureLogProbBackward {
  Experts<S> experts;
  Family family;
  int64_t rows, dim, samples;
  const S* z;
  const Arithmetic<S>* densities;      // [K, B, M]
  const Arithmetic<S>* grad_log_prob;  // [K, B]
  S* grad_z;                           // [K, B, D] or nullptr
  bool wants_experts;                  // whether `out` is to be written
  ExpertGrads<S> out;                  // of mu, and (as logvar) of scale
};

// log p(x | params), summed over the event. N rows of x (all its dimensions but the event's), P elements an event,
// K samples, V classes (categorical only). x holds numbers of type A, or for categorical int64 classes.
template <class S>
struct LogLikelihood {
  Family family;
  int64_t rows, samples, event, classes;
  const Arithmetic<S>* x;     // [N, P]
  const int64_t* classes_of;  // [N, P], categorical
  const S* params;            // [K, N, P] or [K, N, P, V]
  // normal and laplace: the scale of element (k, n, p) is scale[k * sample_stride + n * row_stride + p * step], or the
  // number `scale_value` where scale is nullptr. step is 0 or 1, and 0 only where both strides are (one number for
  // all).
  const Arithmetic<S>* scale;
  double scale_value;
  int64_t scale_sample_stride, scale_row_stride, scale_step;
  const bool* mask;  // [N / rows_per_mask] or nullptr: missing rows count 0
  int64_t rows_per_mask;
  Arithmetic<S>* out;    // [K, N]
  Arithmetic<S>* log_p;  // [K, N, P], categorical: what each element adds to out, for backward
};

template <class S>
struct LogLikelihoodBackward {
  LogLikelihood<S> forward;   // its log_p is an input here, its out is not used
  const Arithmetic<S>* grad;  // [K, N]
  S* grad_params;             // like params, or nullptr
  // One number for all: [K, N], a share for every row. Shared by the samples: [N, P], summed over them. Else [K, N, P].
  Arithmetic<S>* grad_scale;  // or nullptr
};

struct Normals {
  uint64_t seed;
  int64_t rows, dim, samples;
  uint32_t stream;
};

// Every CPU kernel for one element type, as compiled for one instruction set.
template <class Args>
using Kernel = void (*)(const Args&, int64_t begin, int64_t end);

template <class S>
struct Table {
  Kernel<Reparameterize<S>> reparameterize;
  Kernel<ReparameterizeBackward<S>> reparameterize_backward;
  Kernel<Divergence<S>> divergence;
  Kernel<DivergenceBackward<S>> divergence_backward;
  Kernel<PoE<S>> poe;
  Kernel<PoEBackward<S>> poe_backward;
  Kernel<PoEWeightsBackward<S>> poe_weights_backward;  // rows are blocks of kWeightBlock rows
  Kernel<SubsetPosteriors<S>> subset_posteriors;
  Kernel<SubsetPosteriorsBackward<S>> subset_posteriors_backward;
  Kernel<MoPoE<S>> mopoe_sample_kl;
  Kernel<MoPoEBackward<S>> mopoe_sample_kl_backward;
  Kernel<MixtureLogProb<S>> mixture_log_prob;
  Kernel<MixtureLogProbBackward<S>> mixture_log_prob_backward;
  Kernel<LogLikelihood<S>> log_likelihood;
  Kernel<LogLikelihoodBackward<S>> log_likelihood_backward;
};

struct Kernels {
  const char* capability;  // "DEFAULT", "AVX2" or "AVX512", in torch's words
  Table<float> f32;
  Table<double> f64;
  Table<bfloat16> bf16;
  Table<float16> f16;
  void (*normals_f32)(const Normals&, float* out, int64_t begin, int64_t end);  // out [K, B, D]
  void (*normals_f64)(const Normals&, double* out, int64_t begin, int64_t end);
};

// The kernels for this machine: the best it can run, or what ATEN_CPU_CAPABILITY (default, avx2, avx512) asks for.
const Kernels& kernels();

template <class S>
const Table<S>& table();
template <>
inline const Table<float>& table<float>() {
  return kernels().f32;
}
template <>
inline const Table<double>& table<double>() {
  return kernels().f64;
}
template <>
inline const Table<bfloat16>& table<bfloat16>() {
  return kernels().bf16;
}
template <>
inline const Table<float16>& table<float16>() {
  return kernels().f16;
}

}  // namespace mmvae
