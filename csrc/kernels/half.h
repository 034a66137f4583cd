// The 16-bit floating-point types as the kernels hold them in memory; arithmetic on them is float.
#pragma once

#include <stdint.h>
#include <string.h>

#include "platform.h"

namespace mmvae {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// The type that arithmetic on elements of type S is done in, and that KLs and log-probabilities have.
template <class S>
struct ArithmeticOf {
  using type = S;
};
template <>
struct ArithmeticOf<bfloat16> {
  using type = float;
};
template <>
struct ArithmeticOf<float16> {
  using type = float;
};
template <class S>
using Arithmetic = typename ArithmeticOf<S>::type;

template <class S>
constexpr bool kIsHalf = sizeof(S) == 2;

namespace MMVAE_ISA {

template <class To, class From>
static MMVAE_HD To same_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}

static MMVAE_HD float widen(float x) { return x; }
static MMVAE_HD double widen(double x) { return x; }

static MMVAE_HD float widen(bfloat16 x) { return same_bits<float>(static_cast<uint32_t>(x.bits) << 16); }

// Exact: the exponent is moved by a multiplication, which also normalises subnormals.
static MMVAE_HD float widen(float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, rest = x.bits & 0x7FFFu;
  const uint32_t special = rest >= 0x7C00u ? 0x7F800000u : 0u;  // inf or NaN
  const float value = same_bits<float>(rest << 13) * 0x1p112f;
  return same_bits<float>(same_bits<uint32_t>(value) | special | sign);
}

// Rounded to nearest, ties to even, as torch rounds; NaN stays NaN.
template <class S>
static MMVAE_HD S narrow(Arithmetic<S> x) {
  return x;
}
template <>
MMVAE_HD bfloat16 narrow<bfloat16>(float x) {
  const uint32_t b = same_bits<uint32_t>(x);
  if (x != x) return {0x7FC0u};
  return {static_cast<uint16_t>((b + 0x7FFFu + ((b >> 16) & 1u)) >> 16)};
}
template <>
MMVAE_HD float16 narrow<float16>(float x) {
  const uint32_t b = same_bits<uint32_t>(x), sign = (b >> 16) & 0x8000u, magnitude = b & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return {static_cast<uint16_t>(sign | 0x7E00u)};
  if (magnitude >= 0x477FF000u) return {static_cast<uint16_t>(sign | 0x7C00u)};  // rounds beyond 65504
  if (magnitude < 0x38800000u) {  // subnormal: adding 1/2 puts its last bit where float16 has it
    const float shifted = same_bits<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (same_bits<uint32_t>(shifted) - 0x3F000000u))};
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xFFFu + odd) >> 13))};
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
