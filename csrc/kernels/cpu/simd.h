// SIMD vectors of the instruction set this file is compiled for, over the compilers' vector extensions.
//
// Arithmetic and comparisons are plain operators, selection is `mask ? a : b`; below is what has no operator.
// Intrinsics appear only where the compiler's own lowering is slower. A vector is VBYTES wide; float and double differ
// in how many lanes that makes.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "../half.h"

// Before a loop whose arrays are to live in registers: all its steps are written out.
#define MMVAE_UNROLL _Pragma("GCC unroll 16")

#if defined(__AVX512F__)
#define MMVAE_VBYTES 64
#elif defined(__AVX2__)
#define MMVAE_VBYTES 32
#else
#define MMVAE_VBYTES 16
#endif

namespace mmvae {
namespace MMVAE_ISA {

typedef float f32v __attribute__((vector_size(MMVAE_VBYTES)));
typedef double f64v __attribute__((vector_size(MMVAE_VBYTES)));
typedef int32_t i32v __attribute__((vector_size(MMVAE_VBYTES)));
typedef uint32_t u32v __attribute__((vector_size(MMVAE_VBYTES)));
typedef int64_t i64v __attribute__((vector_size(MMVAE_VBYTES)));
typedef uint64_t u64v __attribute__((vector_size(MMVAE_VBYTES)));

// The vector of element type T, its integer twin, and how many lanes they have.
template <class T>
struct Simd;
template <>
struct Simd<float> {
  using V = f32v;
  using I = i32v;
  using Int = int32_t;
  static constexpr int lanes = MMVAE_VBYTES / 4;
};
template <>
struct Simd<double> {
  using V = f64v;
  using I = i64v;
  using Int = int64_t;
  static constexpr int lanes = MMVAE_VBYTES / 8;
};
// The vector that elements stored as S are computed in: 16-bit types are widened to float when loaded.
template <class S>
using Vec = typename Simd<Arithmetic<S>>::V;
template <class S>
constexpr int kLanes = Simd<Arithmetic<S>>::lanes;

template <class V>
struct ElementOf;
template <>
struct ElementOf<f32v> {
  using type = float;
};
template <>
struct ElementOf<f64v> {
  using type = double;
};
template <class V>
using Element = typename ElementOf<V>::type;
template <class V>
using IntOf = typename Simd<Element<V>>::I;

template <class V>
static MMVAE_INLINE V splat(Element<V> x) {
  return V{} + x;
}

template <class To, class From>
static MMVAE_INLINE To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  return (To)x;
}

// --- memory: n lanes; n == kLanes<T> is an ordinary load, fewer touch only those ------------------------------------

template <class T>
static MMVAE_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
static MMVAE_INLINE void store(T* p, Vec<T> v) {
  memcpy(p, &v, sizeof v);
}

#if defined(__AVX512F__)
static MMVAE_INLINE f32v load_some(const float* p, int n) { return _mm512_maskz_loadu_ps((1u << n) - 1u, p); }
static MMVAE_INLINE f64v load_some(const double* p, int n) { return _mm512_maskz_loadu_pd((1u << n) - 1u, p); }
static MMVAE_INLINE void store_some(float* p, f32v v, int n) { _mm512_mask_storeu_ps(p, (1u << n) - 1u, v); }
static MMVAE_INLINE void store_some(double* p, f64v v, int n) { _mm512_mask_storeu_pd(p, (1u << n) - 1u, v); }
#else
template <class T>
static MMVAE_INLINE Vec<T> load_some(const T* p, int n) {
  Vec<T> v{};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
template <class T>
static MMVAE_INLINE void store_some(T* p, Vec<T> v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
#endif

// 16-bit elements: a vector of them is half as wide as the float vector they become.
typedef uint16_t u16h __attribute__((vector_size(MMVAE_VBYTES / 2)));

static MMVAE_INLINE f32v widen(u16h x, bfloat16) { return bits<f32v>(__builtin_convertvector(x, u32v) << 16); }
static MMVAE_INLINE u16h narrow(f32v x, bfloat16) {  // rounded to nearest, ties to even; NaN stays NaN
  const u32v b = bits<u32v>(x), rounded = (b + 0x7FFFu + ((b >> 16) & 1u)) >> 16;
  return __builtin_convertvector(x == x ? rounded : u32v{} + 0x7FC0u, u16h);
}

#if defined(__AVX512F__)
static MMVAE_INLINE f32v widen(u16h x, float16) { return _mm512_cvtph_ps((__m256i)x); }
static MMVAE_INLINE u16h narrow(f32v x, float16) { return (u16h)_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__F16C__)
static MMVAE_INLINE f32v widen(u16h x, float16) { return _mm256_cvtph_ps((__m128i)x); }
static MMVAE_INLINE u16h narrow(f32v x, float16) { return (u16h)_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
#else
static MMVAE_INLINE f32v widen(u16h x, float16) {
  f32v v{};
  for (int i = 0; i < kLanes<float>; ++i) v[i] = MMVAE_ISA::widen(float16{x[i]});
  return v;
}
static MMVAE_INLINE u16h narrow(f32v x, float16) {
  u16h v{};
  for (int i = 0; i < kLanes<float>; ++i) v[i] = MMVAE_ISA::narrow<float16>(x[i]).bits;
  return v;
}
#endif

template <class S, int bytes = sizeof(S)>
struct Memory {  // elements computed in the type they are stored in
  static MMVAE_INLINE Vec<S> load(const S* p, int n) { return n == kLanes<S> ? MMVAE_ISA::load(p) : load_some(p, n); }
  static MMVAE_INLINE void store(S* p, Vec<S> v, int n) {
    if (n == kLanes<S>) {
      MMVAE_ISA::store(p, v);
    } else {
      store_some(p, v, n);
    }
  }
};

template <class S>
struct Memory<S, 2> {
  static MMVAE_INLINE f32v load(const S* p, int n) {
    u16h x{};
    if (n == kLanes<S>) {
      memcpy(&x, p, sizeof x);
    } else {
      for (int i = 0; i < n; ++i) x[i] = p[i].bits;
    }
    return widen(x, S{});
  }
  static MMVAE_INLINE void store(S* p, f32v v, int n) {
    const u16h x = narrow(v, S{});
    if (n == kLanes<S>) {
      memcpy(p, &x, sizeof x);
    } else {
      for (int i = 0; i < n; ++i) p[i].bits = x[i];
    }
  }
};

template <class S>
static MMVAE_INLINE Vec<S> load(const S* p, int n) {
  return Memory<S>::load(p, n);
}
template <class S>
static MMVAE_INLINE void store(S* p, Vec<S> v, int n) {
  Memory<S>::store(p, v, n);
}

// Elements stored as S in vectors of T, which may be a wider type than S is otherwise computed in.
template <class T, class S>
static MMVAE_INLINE Vec<T> load_as(const S* p, int n) {
  if constexpr (sizeof(T) == sizeof(Arithmetic<S>)) {
    return load(p, n);
  } else {
    Vec<T> v{};
    for (int i = 0; i < n; ++i) v[i] = MMVAE_ISA::widen(p[i]);
    return v;
  }
}
template <class S, class V>
static MMVAE_INLINE void store_as(S* p, V v, int n) {
  if constexpr (sizeof(Element<V>) == sizeof(Arithmetic<S>)) {
    store(p, v, n);
  } else {
    for (int i = 0; i < n; ++i) p[i] = MMVAE_ISA::narrow<S>(static_cast<Arithmetic<S>>(v[i]));
  }
}

// The lanes' numbers 0, 1, 2, ...
template <class I>
static MMVAE_INLINE I iota() {
  I v{};
  for (unsigned i = 0; i < sizeof(I) / sizeof(v[0]); ++i) v[i] = i;
  return v;
}

// The first n lanes, `rest` in the others: what a row's tail adds to its sums.
template <class V>
static MMVAE_INLINE V first(V v, int n, Element<V> rest = 0) {
  using T = Element<V>;
  if (n == kLanes<T>) return v;
  using Int = typename Simd<T>::Int;
  return iota<IntOf<V>>() < static_cast<Int>(n) ? v : splat<V>(rest);
}

// Runs f(offset, lanes) over n elements; f is inlined twice, once for whole vectors and once for the tail.
template <class T, class F>
static MMVAE_INLINE void for_lanes(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) f(i, kLanes<T>);
  if (i < n) f(i, static_cast<int>(n - i));
}

// The same over groups of kGroup vectors, then single ones: f(offset, lanes, vectors) where `vectors` is a constant, so
// that f can keep as many sums in registers while it goes from stream to stream.
constexpr int kGroup = 4;
template <int n>
struct Vectors {
  static constexpr int count = n;
};

template <class T, class F>
static MMVAE_INLINE void for_groups(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kGroup * kLanes<T> <= n; i += kGroup * kLanes<T>) f(i, kLanes<T>, Vectors<kGroup>{});
  for (; i + kLanes<T> <= n; i += kLanes<T>) f(i, kLanes<T>, Vectors<1>{});
  if (i < n) f(i, static_cast<int>(n - i), Vectors<1>{});
}

// The same with f(offset, lanes, j): j = 0 .. 3 says which of four accumulators to use, so that four chains of
// additions run side by side.
template <class T, class F>
static MMVAE_INLINE void for_lanes_by_four(int64_t n, F f) {
  constexpr int lanes = kLanes<T>;
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    f(i, lanes, 0);
    f(i + lanes, lanes, 1);
    f(i + 2 * lanes, lanes, 2);
    f(i + 3 * lanes, lanes, 3);
  }
  for (; i + lanes <= n; i += lanes) f(i, lanes, 0);
  if (i < n) f(i, static_cast<int>(n - i), 1);
}

// --- arithmetic ------------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
static MMVAE_INLINE f32v fma(f32v a, f32v b, f32v c) { return _mm512_fmadd_ps(a, b, c); }
static MMVAE_INLINE f64v fma(f64v a, f64v b, f64v c) { return _mm512_fmadd_pd(a, b, c); }
static MMVAE_INLINE f32v square_root(f32v a) { return _mm512_sqrt_ps(a); }
static MMVAE_INLINE f64v square_root(f64v a) { return _mm512_sqrt_pd(a); }
// Low 32 bits of each 64-bit lane, multiplied to 64 bits.
static MMVAE_INLINE u64v mul_low32(u64v a, u64v b) { return (u64v)_mm512_mul_epu32((__m512i)a, (__m512i)b); }
static MMVAE_INLINE u64v xor3(u64v a, u64v b, u64v c) {
  return (u64v)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
}
#elif defined(__AVX2__)
static MMVAE_INLINE f32v fma(f32v a, f32v b, f32v c) { return _mm256_fmadd_ps(a, b, c); }
static MMVAE_INLINE f64v fma(f64v a, f64v b, f64v c) { return _mm256_fmadd_pd(a, b, c); }
static MMVAE_INLINE f32v square_root(f32v a) { return _mm256_sqrt_ps(a); }
static MMVAE_INLINE f64v square_root(f64v a) { return _mm256_sqrt_pd(a); }
static MMVAE_INLINE u64v mul_low32(u64v a, u64v b) { return (u64v)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
static MMVAE_INLINE u64v xor3(u64v a, u64v b, u64v c) { return a ^ b ^ c; }
#else
template <class V>
static MMVAE_INLINE V fma(V a, V b, V c) {
  return a * b + c;
}
template <class V>
static MMVAE_INLINE V square_root(V a) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(a[0]); ++i) a[i] = sizeof(a[0]) == 4 ? sqrtf(a[i]) : sqrt(a[i]);
  return a;
}
static MMVAE_INLINE u64v mul_low32(u64v a, u64v b) {
#if defined(__SSE2__)
  return (u64v)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}
static MMVAE_INLINE u64v xor3(u64v a, u64v b, u64v c) { return a ^ b ^ c; }
#endif

template <class V>
static MMVAE_INLINE V fma(V a, V b, Element<V> c) {
  return fma(a, b, splat<V>(c));
}
template <class V>
static MMVAE_INLINE V fma(V a, Element<V> b, V c) {
  return fma(a, splat<V>(b), c);
}

// 1 / a, to within 2 units in the last place, where 1 / a is in range.
#if defined(__AVX512F__)
static MMVAE_INLINE f32v reciprocal(f32v a) {  // one step of Newton's from 14 bits: three times as fast as dividing
  const f32v rough = _mm512_rcp14_ps(a);
  return fma(rough, fma(-a, rough, splat<f32v>(1)), rough);
}
static MMVAE_INLINE f64v reciprocal(f64v a) { return 1 / a; }
#else
template <class V>
static MMVAE_INLINE V reciprocal(V a) {
  return 1 / a;
}
#endif

// A NaN in the second argument comes out.
#if defined(__AVX512F__)  // GCC makes a comparison and a blend of the operator form
static MMVAE_INLINE f32v smaller(f32v a, f32v b) { return _mm512_min_ps(a, b); }
static MMVAE_INLINE f64v smaller(f64v a, f64v b) { return _mm512_min_pd(a, b); }
static MMVAE_INLINE f32v larger(f32v a, f32v b) { return _mm512_max_ps(a, b); }
static MMVAE_INLINE f64v larger(f64v a, f64v b) { return _mm512_max_pd(a, b); }
#else
template <class V>
static MMVAE_INLINE V smaller(V a, V b) {
  return a < b ? a : b;
}
template <class V>
static MMVAE_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}
#endif

template <class V>
constexpr typename Simd<Element<V>>::Int kSignBit = typename Simd<Element<V>>::Int{1} << (8 * sizeof(Element<V>) - 1);

template <class V>
static MMVAE_INLINE V magnitude(V a) {
  return bits<V>(bits<IntOf<V>>(a) & ~kSignBit<V>);
}

// Sum over the lanes by halves: a fixed order.
template <class V>
static MMVAE_INLINE Element<V> sum(V v) {
  constexpr int n = kLanes<Element<V>>;
  Element<V> a[n];
  memcpy(a, &v, sizeof v);
  for (int half = n / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a[i] += a[i + half];
  return a[0];
}

#if defined(__AVX512F__)
template <class V>
static MMVAE_INLINE bool all(V mask) {
  return _mm512_test_epi64_mask((__m512i)~mask, (__m512i)~mask) == 0;
}
#elif defined(__AVX2__)
template <class V>
static MMVAE_INLINE bool all(V mask) {
  return _mm256_movemask_epi8((__m256i)mask) == -1;
}
#else
template <class V>
static MMVAE_INLINE bool all(V mask) {
  bool yes = true;
  for (unsigned i = 0; i < sizeof(V) / sizeof(mask[0]); ++i) yes = yes && mask[i] != 0;
  return yes;
}
#endif

template <class V>
static MMVAE_INLINE bool any(V mask) {
  return !all(~mask);
}

// --- two vectors interleaved, and what is built of it ---------------------------------------------------------------

template <bool high, class V>
static MMVAE_INLINE V zip(V a, V b) {  // a0 b0 a1 b1 ... of the low or high half
  constexpr int n = kLanes<Element<V>>;
  IntOf<V> order{};
  for (int i = 0; i < n; ++i) order[i] = (i % 2) * n + i / 2 + (high ? n / 2 : 0);
#ifdef __clang__
  V r{};
  for (int i = 0; i < n; ++i) r[i] = order[i] < n ? a[order[i]] : b[order[i] - n];  // folded to a shuffle
  return r;
#else
  return __builtin_shuffle(a, b, order);
#endif
}

// Lane i = sum(v[i]), bit for bit, for as many vectors as they have lanes: one sum costs two shuffles, not a tree.
template <class V, int n = kLanes<Element<V>>>
static MMVAE_INLINE V sums(V* v) {
  if constexpr (n > 1) {
    MMVAE_UNROLL
    for (int i = 0; i < n / 2; ++i) v[i] = zip<false>(v[i], v[i + n / 2]) + zip<true>(v[i], v[i + n / 2]);
    return sums<V, n / 2>(v);
  }
  return v[0];
}

// Four vectors of lanes 0..3 of each counter, into the order of the dimensions.
static MMVAE_INLINE void store_interleaved(float* out, f32v n0, f32v n1, f32v n2, f32v n3) {
  const f32v even_low = zip<false>(n0, n2), odd_low = zip<false>(n1, n3);
  const f32v even_high = zip<true>(n0, n2), odd_high = zip<true>(n1, n3);
  constexpr int n = kLanes<float>;
  store(out, zip<false>(even_low, odd_low));
  store(out + n, zip<true>(even_low, odd_low));
  store(out + 2 * n, zip<false>(even_high, odd_high));
  store(out + 3 * n, zip<true>(even_high, odd_high));
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
