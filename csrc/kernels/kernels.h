// The plain interface of the kernels: raw pointers, sizes and strides, nothing of torch, NumPy or Python.
//
// A kernel processes rows [begin, end) of its arguments; rows are independent, so callers split them over threads as
// they like and get the same bits. Strides count elements; the last dimension is always contiguous.
#pragma once

#include <stdint.h>

namespace mmvae {

constexpr int kMaxExperts = 62;  // a subset of experts is a bitmask in an int64

template <class T>
struct Rows {  // a matrix [B, D] whose rows lie `stride` apart
  T* data;
  int64_t stride;
  T* row(int64_t r) const { return data + r * stride; }
};

struct Mask {  // bool [B, M], true = observed; data == nullptr: all are
  const bool* data;
  int64_t row_stride, expert_stride;
  bool observed(int64_t row, int expert) const {
    return data == nullptr || data[row * row_stride + expert * expert_stride];
  }
};

template <class T>
struct Experts {
  int count;
  Rows<const T> mu[kMaxExperts], logvar[kMaxExperts];
  Mask mask;
};

// The gradients of the experts, each contiguous [B, D].
template <class T>
struct ExpertGrads {
  Rows<T> mu[kMaxExperts], logvar[kMaxExperts];
};

template <class T>
struct Reparameterize {
  Rows<const T> mu, logvar;
  int64_t rows, dim, samples;
  uint64_t seed;
  T* z;  // [K, B, D]
};

template <class T>
struct ReparameterizeBackward {
  const T* grad_z;  // [K, B, D]
  const T* z;       // [K, B, D]
  Rows<const T> mu, logvar;
  int64_t rows, dim, samples;
  uint64_t seed;
  T* grad_mu;      // [B, D]
  T* grad_logvar;  // [B, D]
};

template <class T>
struct GaussianKL {
  Rows<const T> mu, logvar;
  int64_t dim;
  T* kl;  // [B]
};

template <class T>
struct GaussianKLBackward {
  const T* grad_kl;  // [B]
  Rows<const T> mu, logvar;
  int64_t dim;
  T* grad_mu;      // [B, D]
  T* grad_logvar;  // [B, D]
};

template <class T>
struct PoE {
  Experts<T> experts;
  bool prior;
  int64_t rows, dim;
  T* mu;      // [B, D]
  T* logvar;  // [B, D]
  // what follows is for poe_sample_kl alone
  int64_t samples;
  uint64_t seed;
  T* z;   // [K, B, D]
  T* kl;  // [B]
};

template <class T>
struct PoEBackward {
  Experts<T> experts;
  int64_t rows, dim;
  const T* mu;           // joint [B, D]
  const T* logvar;       // joint [B, D]
  const T* grad_mu;      // [B, D] or nullptr = 0
  const T* grad_logvar;  // [B, D] or nullptr = 0
  ExpertGrads<T> out;
  // what follows is for poe_sample_kl alone
  int64_t samples;
  uint64_t seed;
  const T* z;        // [K, B, D]
  const T* grad_z;   // [K, B, D] or nullptr = 0
  const T* grad_kl;  // [B] or nullptr = 0
};

// How the posteriors of the listed subsets follow from one another: each node adds one expert to its parent's sums.
// Node 0 is the empty set; parents come before children.
struct Lattice {
  int nodes, listed;
  const int64_t* bits;    // [nodes] the subset as a bitmask
  const int32_t* parent;  // [nodes]
  const int32_t* expert;  // [nodes] the expert this node adds
  const bool* is_listed;  // [nodes] whether the caller asked for it (else it is a stepping stone)
  const bool* has_prior;  // [nodes] whether the prior expert sits in it
  const int32_t* node;    // [listed] node of each listed subset, in the caller's order
};

template <class T>
struct MoPoE {
  Experts<T> experts;
  Lattice lattice;
  int64_t rows, dim;
  uint64_t seed;
  T* z;             // [B, D]
  T* kl;            // [B]
  int64_t* subset;  // [B] index into the listed subsets, -1: none available
};

template <class T>
struct MoPoEBackward {
  Experts<T> experts;
  Lattice lattice;
  int64_t rows, dim;
  uint64_t seed;
  const T* z;
  const int64_t* subset;
  const T* grad_z;   // or nullptr = 0
  const T* grad_kl;  // or nullptr = 0
  ExpertGrads<T> out;
};

struct Normals {
  uint64_t seed;
  int64_t rows, dim, samples;
  uint32_t stream;
};

// Every kernel for one element type, as compiled for one instruction set.
template <class T>
struct Table {
  void (*reparameterize)(const Reparameterize<T>&, int64_t begin, int64_t end);
  void (*reparameterize_backward)(const ReparameterizeBackward<T>&, int64_t begin, int64_t end);
  void (*gaussian_kl)(const GaussianKL<T>&, int64_t begin, int64_t end);
  void (*gaussian_kl_backward)(const GaussianKLBackward<T>&, int64_t begin, int64_t end);
  void (*product_of_experts)(const PoE<T>&, int64_t begin, int64_t end);
  void (*poe_sample_kl)(const PoE<T>&, int64_t begin, int64_t end);
  void (*poe_backward)(const PoEBackward<T>&, int64_t begin, int64_t end);
  void (*mopoe_sample_kl)(const MoPoE<T>&, int64_t begin, int64_t end);
  void (*mopoe_sample_kl_backward)(const MoPoEBackward<T>&, int64_t begin, int64_t end);
  void (*normals)(const Normals&, T* out, int64_t begin, int64_t end);  // out [K, B, D]
};

struct Kernels {
  const char* capability;  // "DEFAULT", "AVX2" or "AVX512", in torch's words
  Table<float> f32;
  Table<double> f64;
};

// The kernels for this machine: the best it can run, or what ATEN_CPU_CAPABILITY (default, avx2, avx512) asks for.
const Kernels& kernels();

template <class T>
const Table<T>& table();
template <>
inline const Table<float>& table<float>() {
  return kernels().f32;
}
template <>
inline const Table<double>& table<double>() {
  return kernels().f64;
}

}  // namespace mmvae
