// exp, log, sine and cosine on SIMD vectors.
//
// Own polynomials rather than libmvec (needs -ffast-math, which lets the compiler forget NaN) or Sleef: accurate to
// about one unit in the last place, NaN in gives NaN out, never a subnormal result. float coefficients are weighted
// minimax fits (errors below 6e-9), double ones Taylor series.
#pragma once

#include "../gaussian.h"
#include "simd.h"

namespace mmvae {
namespace MMVAE_ISA {

// c[0] + c[1] x + c[2] x^2 + ...
template <class V, int N>
static MMVAE_INLINE V polynomial(V x, const Element<V> (&c)[N]) {
  V y = splat<V>(c[N - 1]);
  for (int i = N - 2; i >= 0; --i) y = fma(y, x, c[i]);
  return y;
}

template <class T>
struct Constants;

template <>
struct Constants<float> {
  static constexpr int mantissa_bits = 23;
  static constexpr int32_t exponent_bias = 127;
  static constexpr int32_t sqrt_half_bits = 0x3f3504f3;
  static constexpr int32_t mantissa_mask = 0x007fffff, one_bits = 0x3f800000;
  static constexpr float round_magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float log2_e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float exp_max = 88.7228394f, exp_safe = 88.7f, exp_min = -87.3f;
  static constexpr float huge = 1e30f;
  static constexpr float smallest = 1.17549435e-38f, largest = 3.40282347e+38f;  // normal numbers
  static constexpr float exp_q[] = {4.999999345e-01f, 1.666652064e-01f, 4.166838793e-02f, 8.368715412e-03f,
                                    1.381459986e-03f};
  static constexpr float log_p[] = {3.333333171e-01f, -2.500082106e-01f, 2.000122667e-01f, -1.662335648e-01f,
                                    1.420176247e-01f, -1.316019505e-01f, 1.276155036e-01f, -7.634429907e-02f};
  static constexpr float sin_turn[] = {6.283185288e+00f, -4.134166263e+01f, 8.159255354e+01f, -7.540206771e+01f};
  static constexpr float cos_turn[] = {-1.973920869e+01f, 6.493932647e+01f, -8.544374165e+01f, 5.924596183e+01f};
};

template <>
struct Constants<double> {
  static constexpr int mantissa_bits = 52;
  static constexpr int64_t exponent_bias = 1023;
  static constexpr int64_t sqrt_half_bits = 0x3fe6a09e667f3bcd;
  static constexpr int64_t mantissa_mask = 0x000fffffffffffff, one_bits = 0x3ff0000000000000;
  static constexpr double round_magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double log2_e = 1.4426950408889634, ln2_high = 0.6931471803691238, ln2_low = 1.9082149292705877e-10;
  static constexpr double exp_max = 709.782712893384, exp_safe = 709.7, exp_min = -708.4;
  static constexpr double huge = 1e300;
  static constexpr double smallest = 2.2250738585072014e-308, largest = 1.7976931348623157e+308;
  static constexpr double exp_q[] = {1. / 2,       1. / 6,        1. / 24,        1. / 120,
                                     1. / 720,     1. / 5040,     1. / 40320,     1. / 362880,
                                     1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800};
  static constexpr double log_s[] = {1. / 3,  1. / 5,  1. / 7,  1. / 9,  1. / 11, 1. / 13,
                                     1. / 15, 1. / 17, 1. / 19, 1. / 21, 1. / 23};
  static constexpr double t = 39.47841760435743;  // (2 pi)^2
  static constexpr double sin_turn[] = {6.283185307179586,
                                        -6.283185307179586 * t / 6,
                                        6.283185307179586 * t * t / 120,
                                        -6.283185307179586 * t * t * t / 5040,
                                        6.283185307179586 * t * t * t * t / 362880,
                                        -6.283185307179586 * t * t * t * t * t / 39916800,
                                        6.283185307179586 * t * t * t * t * t * t / 6227020800,
                                        -6.283185307179586 * t * t * t * t * t * t * t / 1307674368000,
                                        6.283185307179586 * t * t * t * t * t * t * t * t / 355687428096000};
  static constexpr double cos_turn[] = {-t / 2,
                                        t * t / 24,
                                        -t * t * t / 720,
                                        t * t * t * t / 40320,
                                        -t * t * t * t * t / 3628800,
                                        t * t * t * t * t * t / 479001600,
                                        -t * t * t * t * t * t * t / 87178291200,
                                        t * t * t * t * t * t * t * t / 20922789888000,
                                        -t * t * t * t * t * t * t * t * t / 6402373705728000};
};

// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r - 1 - r.
template <class V>
struct ExpParts {
  V n_plus_magic, r, tail;
};

template <class V>
static MMVAE_INLINE ExpParts<V> exp_parts(V x) {
  using C = Constants<Element<V>>;
  const V n_plus_magic = fma(x, C::log2_e, splat<V>(C::round_magic));
  const V n = n_plus_magic - C::round_magic;
  const V r = fma(n, -C::ln2_low, fma(n, -C::ln2_high, x));
  return {n_plus_magic, r, r * r * polynomial(r, C::exp_q)};
}

template <class V>
static MMVAE_INLINE V scale_by_power(V x, V n_plus_magic) {
  // x * 2^n as (x * 2^(n - 1)) * 2, so that n = bias + 1 does not overflow; below the normal range the factor is 0.
  using C = Constants<Element<V>>;
  using I = IntOf<V>;
  const I n = bits<I>(n_plus_magic) - bits<I>(splat<V>(C::round_magic));
  return x * bits<V>((n + (C::exponent_bias - 1)) << C::mantissa_bits) * splat<V>(2);
}

// e^x; 0 below about -87 (float) or -708 (double).
template <class V>
static MMVAE_INLINE V exp(V x) {
  using C = Constants<Element<V>>;
  const V bounded =
      x < splat<V>(C::exp_min) ? splat<V>(C::exp_min) : (x > splat<V>(C::exp_max) ? splat<V>(C::exp_max) : x);
  const ExpParts<V> p = exp_parts(bounded);
  const V y = scale_by_power(1 + (p.r + p.tail), p.n_plus_magic);
  return x > splat<V>(C::exp_max) ? splat<V>(static_cast<Element<V>>(INFINITY)) : y;
}

// e^x for x <= 0, or above it by no more than rounding: exp() without what larger x need.
template <class V>
static MMVAE_INLINE V exp_of_negative(V x) {
  const ExpParts<V> p = exp_parts(larger(splat<V>(Constants<Element<V>>::exp_min), x));
  return scale_by_power(1 + (p.r + p.tail), p.n_plus_magic);
}

// e^x for x from -87 to 88 (double: -708 to 709), beyond that its value there: finite, but for NaN
template <class V>
static MMVAE_INLINE V exp_within_range(V x) {
  return exp_of_negative(smaller(splat<V>(Constants<Element<V>>::exp_safe), x));
}

// For +inf: inf, inf, inf; for -inf: 0, -1, inf.
template <class V>
static MMVAE_INLINE ExpAndTail<V> exp_and_tail(V x) {
  using C = Constants<Element<V>>;
  const V bounded =
      x < splat<V>(C::exp_min) ? splat<V>(C::exp_min) : (x > splat<V>(C::exp_max) ? splat<V>(C::exp_max) : x);
  const ExpParts<V> p = exp_parts(bounded);
  const V finite = scale_by_power(1 + (p.r + p.tail), p.n_plus_magic);
  const V value = x > splat<V>(C::exp_max) ? splat<V>(static_cast<Element<V>>(INFINITY)) : finite;
  const auto near = p.n_plus_magic == splat<V>(C::round_magic);
  const V far = value - 1, far_tail = far - (x > splat<V>(C::huge) ? splat<V>(C::huge) : x);
  return {value, near ? p.r + p.tail : far, near ? p.tail : far_tail};
}

// e^x - 1 to full relative accuracy near 0; -1 at -inf, inf at +inf.
template <class V>
static MMVAE_INLINE V exp_minus_1(V x) {
  using C = Constants<Element<V>>;
  const V bounded =
      x < splat<V>(C::exp_min) ? splat<V>(C::exp_min) : (x > splat<V>(C::exp_max) ? splat<V>(C::exp_max) : x);
  const ExpParts<V> p = exp_parts(bounded);
  const V finite = scale_by_power(1 + (p.r + p.tail), p.n_plus_magic);
  const V value = x > splat<V>(C::exp_max) ? splat<V>(static_cast<Element<V>>(INFINITY)) : finite;
  return p.n_plus_magic == splat<V>(C::round_magic) ? p.r + p.tail : value - 1;
}

// log x for x positive, finite and normal; NaN stays NaN.
static MMVAE_INLINE f32v log(f32v x) {
  using C = Constants<float>;
  const i32v e = (bits<i32v>(x) - C::sqrt_half_bits) >> C::mantissa_bits;
  const f32v f = bits<f32v>(bits<i32v>(x) - (e << C::mantissa_bits)) - 1;
  const f32v n = __builtin_convertvector(e, f32v);
  const f32v ff = f * f;
  const f32v y = fma(ff * f, polynomial(f, C::log_p), fma(n, C::ln2_low, fma(ff, -0.5f, f)));
  const f32v result = fma(n, C::ln2_high, y);
  return x == x ? result : x;
}

static MMVAE_INLINE f64v log(f64v x) {
  using C = Constants<double>;
  const i64v e = (bits<i64v>(x) - C::sqrt_half_bits) >> C::mantissa_bits;
  const f64v f = bits<f64v>(bits<i64v>(x) - (e << C::mantissa_bits)) - 1;
  const f64v n = __builtin_convertvector(e, f64v);
  const f64v s = f / (f + 2), z = s * s;
  const f64v y = fma(s + s, z * polynomial(z, C::log_s), fma(n, C::ln2_low, s + s));
  const f64v result = fma(n, C::ln2_high, y);
  return x == x ? result : x;
}

// log2 x to within 0.09, x >= 0: the bit pattern of a floating-point number is nearly its logarithm.
template <class V>
static MMVAE_INLINE V rough_log2(V x) {
  using C = Constants<Element<V>>;
  constexpr Element<V> one = static_cast<Element<V>>(typename Simd<Element<V>>::Int{1} << C::mantissa_bits);
  return __builtin_convertvector(bits<IntOf<V>>(x), V) * (1 / one) - static_cast<Element<V>>(C::exponent_bias);
}

template <class V>
struct SinCos {
  V sin, cos;
};

// Sine and cosine of 2 pi u for u in [0, 1]; the reduction to an eighth of a turn is exact.
template <class V>
static MMVAE_INLINE SinCos<V> sincos_turns(V u) {
  using C = Constants<Element<V>>;
  using I = IntOf<V>;
  using Int = typename Simd<Element<V>>::Int;
  const V quarter_plus_magic = fma(u, static_cast<Element<V>>(4), splat<V>(C::round_magic));
  const I quadrant = bits<I>(quarter_plus_magic);
  const V r = fma(quarter_plus_magic - C::round_magic, static_cast<Element<V>>(-0.25), u);
  const V rr = r * r;
  const V s = r * polynomial(rr, C::sin_turn), c = fma(rr, polynomial(rr, C::cos_turn), splat<V>(1));
  const I odd = (quadrant & 1) != 0;
  const V sin = odd ? c : s, cos = odd ? s : c;
  constexpr int top = sizeof(Int) * 8 - 1, up = top - 1;
  const I sin_sign = (quadrant >> 1) << top, cos_sign = ((quadrant + 1) & 2) << up;
  return {bits<V>(bits<I>(sin) ^ sin_sign), bits<V>(bits<I>(cos) ^ cos_sign)};
}

// A sum of logarithms as the logarithm of a product: mantissas multiply, exponents add; one log for many factors.
template <class V>
struct LogProduct {
  V mantissa = splat<V>(1);
  IntOf<V> exponent{};

  // Up to about 100 factors between calls of fold(): each mantissa is below 2.
  MMVAE_INLINE void multiply(V x) {
    using C = Constants<Element<V>>;
    const IntOf<V> b = bits<IntOf<V>>(x);
    exponent += b >> C::mantissa_bits;  // the bias is taken off in fold()
    exponent -= C::exponent_bias;
    mantissa *= bits<V>((b & C::mantissa_mask) | C::one_bits);
  }
  MMVAE_INLINE void fold() {
    const V m = mantissa;
    mantissa = splat<V>(1);
    multiply(m);
  }
  MMVAE_INLINE void multiply(const LogProduct& other) {
    exponent += other.exponent;
    multiply(other.mantissa);
    fold();
  }
  MMVAE_INLINE V log_of_product() const {
    return fma(__builtin_convertvector(exponent, V), splat<V>(static_cast<Element<V>>(0.6931471805599453)),
               log(mantissa));
  }
};

}  // namespace MMVAE_ISA
}  // namespace mmvae
