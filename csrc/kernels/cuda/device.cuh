// What the CUDA kernels share: work on rows, packs of elements, sums, noise, launches.
//
// A team of threads (a power of two, at most a block) takes a row: every thread a pack of neighbouring dimensions, then
// the next one a team further. Its size follows from the row's length alone, and sums are taken in a fixed order: the
// result has the same bits every time and for every batch size. The same files compile as plain C++ against
// tests/cuda_emulator, which runs them on the CPU.
#pragma once

#include <stdint.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#ifndef MMVAE_CUDA_EMULATED
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include "../gaussian.h"
#include "../philox.h"
#include "launch.h"

#define MMVAE_DEVICE static __device__ __forceinline__

namespace mmvae {
namespace cuda {

using namespace MMVAE_ISA;

// ---- launches
// --------------------------------------------------------------------------------------------------------

constexpr int kBlock = 128;  // threads of a block
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
#ifdef MMVAE_CUDA_EMULATED
constexpr int64_t kMaxBlocks = 5;  // few, so that tests reach the second round of a kernel's loop over rows
#else
constexpr int64_t kMaxBlocks = 0x7FFFFFFF;
#endif

// What a kernel's parameters take: at most 4096 bytes, since more needs CUDA 12.1, a driver of its time and sm_70.
template <class... Parameters>
constexpr size_t kParameterBytes = (0 + ... + ((sizeof(Parameters) + 7) / 8 * 8));

template <class... Parameters, class... Args>
void start_kernel(const char* name, void (*kernel)(Parameters...), int64_t blocks, cudaStream_t stream,
                  const Args&... args) {
  static_assert(kParameterBytes<Parameters...> <= 4096, "a kernel's parameters are more than every driver takes");
  if (blocks <= 0) return;
  const unsigned grid = static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
#ifdef MMVAE_CUDA_EMULATED
  (void)stream;
  cuda_emulator::run(grid, kBlock, [&] { kernel(args...); });
#else
  kernel<<<grid, kBlock, 0, stream>>>(args...);
#endif
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("mmvae_fast: the CUDA kernel ") + name +
                             " did not start: " + cudaGetErrorString(error));
}

// The threads that share a row of `steps` steps.
inline int team_for(int64_t steps) {
  int team = 1;
  while (team < kBlock && team < steps) team *= 2;
  return team;
}

inline int64_t blocks_for(int64_t rows, int team) {
  const int64_t rows_a_block = kBlock / team;
  return (rows + rows_a_block - 1) / rows_a_block;
}

// Calls f(row, lane, valid) with the row of this thread's team, over and over until the grid has done them all. Every
// thread of a block makes the same calls, so that f may hold barriers; those beyond the last row have valid = false.
template <class F>
MMVAE_DEVICE void for_rows(int64_t rows, int team, F f) {
  const int rows_a_block = kBlock / team, lane = static_cast<int>(threadIdx.x) & (team - 1);
  const int64_t step = static_cast<int64_t>(gridDim.x) * rows_a_block;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * rows_a_block; first < rows; first += step) {
    const int64_t row = first + static_cast<int>(threadIdx.x) / team;
    f(row, lane, row < rows);
  }
}

// ---- sums over a team
// ------------------------------------------------------------------------------------------------

// The sum of the team's values, for each of its threads. Holds barriers if the team is more than a warp: all threads of
// the block must get here.
template <class A>
MMVAE_DEVICE A team_sum(A value, int team) {
  for (int offset = (team < kWarp ? team : kWarp) / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kAllLanes, value, offset);
  if (team > kWarp) {
    __shared__ A of_warp[kBlock / kWarp];
    const int thread = static_cast<int>(threadIdx.x), first_warp = (thread & ~(team - 1)) / kWarp;
    __syncthreads();  // the last call's readers are through
    if (thread % kWarp == 0) of_warp[thread / kWarp] = value;
    __syncthreads();
    value = 0;
    for (int w = 0; w < team / kWarp; ++w) value += of_warp[first_warp + w];
  }
  return value;
}

// ---- mathematics
// ----------------------------------------------------------------------------------------------------- CUDA's own
// functions, within 2 units in the last place; never the fast intrinsics.

MMVAE_DEVICE float exp(float x) { return ::expf(x); }
MMVAE_DEVICE double exp(double x) { return ::exp(x); }
MMVAE_DEVICE float expm1(float x) { return ::expm1f(x); }
MMVAE_DEVICE double expm1(double x) { return ::expm1(x); }
MMVAE_DEVICE float log(float x) { return ::logf(x); }
MMVAE_DEVICE double log(double x) { return ::log(x); }
MMVAE_DEVICE float log1p(float x) { return ::log1pf(x); }
MMVAE_DEVICE double log1p(double x) { return ::log1p(x); }
MMVAE_DEVICE float square_root(float x) { return ::sqrtf(x); }
MMVAE_DEVICE double square_root(double x) { return ::sqrt(x); }
MMVAE_DEVICE float magnitude(float x) { return ::fabsf(x); }
MMVAE_DEVICE double magnitude(double x) { return ::fabs(x); }
MMVAE_DEVICE void sincos_turns(float u, float& sin, float& cos) { ::sincospif(2 * u, &sin, &cos); }  // of 2 pi u
MMVAE_DEVICE void sincos_turns(double u, double& sin, double& cos) { ::sincospi(2 * u, &sin, &cos); }

template <class A>
MMVAE_DEVICE A infinity() {
  return static_cast<A>(INFINITY);
}

// Stands in for +inf where inf - inf must not happen.
template <class A>
MMVAE_DEVICE A huge() {
  return static_cast<A>(sizeof(A) == 4 ? 1e30 : 1e300);
}

template <class A>
MMVAE_DEVICE A largest() {
  return static_cast<A>(sizeof(A) == 4 ? 3.40282347e+38 : 1.7976931348623157e+308);
}

template <class A>
MMVAE_DEVICE A smaller(A x, A y) {
  return y < x ? y : x;  // NaN in x stays
}

// (e^x - 1 - x) / x^2 for |x| <= ln 2 / 2.
MMVAE_DEVICE float exp_tail_series(float x) {
  float y = 1.381459986e-03f;
  y = y * x + 8.368715412e-03f;
  y = y * x + 4.166838793e-02f;
  y = y * x + 1.666652064e-01f;
  return y * x + 4.999999345e-01f;
}
MMVAE_DEVICE double exp_tail_series(double x) {
  double y = 1;
#pragma unroll
  for (int n = 14; n > 2; --n) y = y * (x * (1. / n)) + 1;
  return y * 0.5;
}

template <class A>
MMVAE_DEVICE bool near_0(A x) {
  return magnitude(x) < static_cast<A>(0.34657359027997264);
}

// e^x - 1 - x from x and e^x, to full relative accuracy near 0 (for +inf: inf).
template <class A>
MMVAE_DEVICE A exp_tail(A x, A exp_x) {
  const A near = x * x * exp_tail_series(x), far = (exp_x - 1) - smaller(x, huge<A>());
  return near_0(x) ? near : far;
}

// For +inf: inf, inf, inf; for -inf: 0, -1, inf.
template <class A>
MMVAE_DEVICE ExpAndTail<A> exp_and_tail(A x) {
  const A value = exp(x), tail = exp_tail(x, value);
  return {value, near_0(x) ? x + tail : value - 1, tail};
}

// ---- packs: the neighbouring dimensions that one thread holds
// --------------------------------------------------------

// 16 bytes of 16-bit and 32-bit types; a multiple of four, since noise comes in fours.
template <class S>
constexpr int kPack = kIsHalf<S> ? 8 : 4;

template <class A, int N>
struct Pack {
  A at[N];
  __device__ __forceinline__ A& operator[](int i) { return at[i]; }
  __device__ __forceinline__ const A& operator[](int i) const { return at[i]; }
};

// S in memory <-> Arithmetic<S> in registers; on the device by the instructions made for it.
template <class S>
MMVAE_DEVICE Arithmetic<S> from_memory(S x) {
  return widen(x);
}
template <class S>
MMVAE_DEVICE S to_memory(Arithmetic<S> x) {
  return narrow<S>(x);
}
#ifndef MMVAE_CUDA_EMULATED
template <>
__device__ __forceinline__ float from_memory<float16>(float16 x) {
  return __half2float(__ushort_as_half(x.bits));
}
template <>
__device__ __forceinline__ float16 to_memory<float16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
template <>
__device__ __forceinline__ bfloat16 to_memory<bfloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
#endif

// How N elements of S travel between memory and registers: in words of 16 bytes, or 8.
template <class S, int N>
struct Words16 {
  static constexpr int bytes = N * static_cast<int>(sizeof(S));
  using Word = std::conditional_t<bytes % 16 == 0, uint4, std::conditional_t<bytes % 8 == 0, uint2, uint32_t>>;
  static constexpr int count = bytes / static_cast<int>(sizeof(Word));
  static_assert(bytes % 4 == 0, "a pack is a whole number of words");
  union {
    Word word[count];
    S element[N];
  };
  MMVAE_HD static bool fits(const S* p) { return reinterpret_cast<uintptr_t>(p) % sizeof(Word) == 0; }
  // From and to memory that fits.
#ifdef MMVAE_CUDA_EMULATED
  void read(const S* p) { memcpy(word, p, sizeof word); }
  void write(S* p) const { memcpy(p, word, sizeof word); }
#else
  __device__ __forceinline__ void read(const S* p) {
#pragma unroll
    for (int i = 0; i < count; ++i) word[i] = reinterpret_cast<const Word*>(p)[i];
  }
  __device__ __forceinline__ void write(S* p) const {
#pragma unroll
    for (int i = 0; i < count; ++i) reinterpret_cast<Word*>(p)[i] = word[i];
  }
#endif
};

// Elements p[0 .. n); the pack's rest, if any, is 0.
template <int N, class S>
MMVAE_DEVICE Pack<Arithmetic<S>, N> load(const S* p, int64_t n) {
  Pack<Arithmetic<S>, N> x;
  using W = Words16<S, N>;
  if (n >= N && W::fits(p)) {
    W words;
    words.read(p);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = from_memory<S>(words.element[i]);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = i < n ? from_memory<S>(p[i]) : Arithmetic<S>(0);
  }
  return x;
}

template <int N, class S>
MMVAE_DEVICE void store(S* p, const Pack<Arithmetic<S>, N>& x, int64_t n) {
  using W = Words16<S, N>;
  if (n >= N && W::fits(p)) {
    W words;
#pragma unroll
    for (int i = 0; i < N; ++i) words.element[i] = to_memory<S>(x[i]);
    words.write(p);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < n) p[i] = to_memory<S>(x[i]);
  }
}

template <class A, int N>
MMVAE_DEVICE Pack<A, N> splat(A value) {
  Pack<A, N> x;
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = value;
  return x;
}

// Calls f(d, n) for this thread's packs of a row: dimensions d .. d + N, of which n lie in the row.
template <int N, class F>
MMVAE_DEVICE void for_packs(int64_t dim, int team, int lane, F f) {
  for (int64_t d = static_cast<int64_t>(lane) * N; d < dim; d += static_cast<int64_t>(team) * N) f(d, dim - d);
}

template <class S>
int team_of_packs(int64_t dim) {
  return team_for((dim + kPack<S> - 1) / kPack<S>);
}

// ---- noise
// -----------------------------------------------------------------------------------------------------------

// u = ((x >> 9) + 0.5) * 2^-23: exact, strictly inside (0, 1).
template <class A>
MMVAE_DEVICE A uniform(uint32_t x) {
  return (static_cast<A>(x >> 9) + static_cast<A>(0.5)) * static_cast<A>(0x1p-23);
}

template <class A>
MMVAE_DEVICE void box_muller(uint32_t x0, uint32_t x1, A& n0, A& n1) {
  const A radius = square_root(log(uniform<A>(x0)) * -2);
  A sin, cos;
  sincos_turns(uniform<A>(x1), sin, cos);
  n0 = radius * cos;
  n1 = radius * sin;
}

template <class A>
MMVAE_DEVICE A laplace_noise(uint32_t x) {
  const A u = uniform<A>(x);
  const bool lower = u < static_cast<A>(0.5);
  const A distance = log(2 * (lower ? u : 1 - u));  // <= 0; both arguments are exact
  return lower ? distance : -distance;
}

// The noise of dimensions d .. d + N (d a multiple of four).
template <class A, int N>
MMVAE_DEVICE Pack<A, N> noise(const SeedValue& seed, int64_t row, int64_t sample, int64_t d,
                              Family family = Family::normal) {
  Pack<A, N> eps;
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const Words w = philox(static_cast<uint32_t>(d / 4) + static_cast<uint32_t>(i / 4), counted_row(seed, row),
                           static_cast<uint32_t>(sample), kStreamNoise, seed.key);
    if (family == Family::laplace) {
#pragma unroll
      for (int j = 0; j < 4; ++j) eps[i + j] = laplace_noise<A>(w.word[j]);
    } else {
      box_muller(w.word[0], w.word[1], eps[i], eps[i + 1]);
      box_muller(w.word[2], w.word[3], eps[i + 2], eps[i + 3]);
    }
  }
  return eps;
}

// The normal of one dimension.
template <class A>
MMVAE_DEVICE A normal_at(const SeedValue& seed, int64_t row, int64_t sample, int64_t d) {
  const Words w = philox(static_cast<uint32_t>(d / 4), counted_row(seed, row), static_cast<uint32_t>(sample),
                         kStreamNoise, seed.key);
  const bool second = d & 2;
  A n0, n1;
  box_muller(second ? w.word[2] : w.word[0], second ? w.word[3] : w.word[1], n0, n1);
  return d & 1 ? n1 : n0;
}

}  // namespace cuda
}  // namespace mmvae
