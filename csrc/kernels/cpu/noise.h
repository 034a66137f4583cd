// Standard normals (or Laplace numbers) in tiles that stay in the L1 cache: Philox in 64-bit lanes, then Box-Muller (or
// the inverse distribution function).
#pragma once

#include "../kernels.h"
#include "../philox.h"
#include "math.h"

namespace mmvae {
namespace MMVAE_ISA {

// Counters run through the blocks of four dimensions of a row, then on to the next row.
struct Counters {
  uint32_t row;        // of the first counter
  int64_t block;       // d / 4 of the first counter
  int64_t row_blocks;  // how many blocks a row has within the tile
  uint32_t sample, stream;
};

// Words of kLanes<float> counters: lane l holds counter l's word.
struct WordVectors {
  u32v word[4];
};

// Philox4x32-10 on 32-bit numbers in 64-bit lanes. The upper halves carry leftovers that no later step looks at:
// mul_low32 reads the lower halves only.
static MMVAE_INLINE void philox_lanes(u64v (&c)[4], uint64_t seed) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  const u64v m0 = u64v{} + kPhiloxM0, m1 = u64v{} + kPhiloxM1;
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const u64v p0 = mul_low32(c[0], m0), p1 = mul_low32(c[2], m1);
    c[0] = xor3(p1 >> 32, c[1], u64v{} + k0);
    c[2] = xor3(p0 >> 32, c[3], u64v{} + k1);
    c[1] = p1;
    c[3] = p0;
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
}

static MMVAE_INLINE WordVectors philox_words(u32v block, u32v row, uint32_t sample, uint32_t stream, uint64_t seed) {
  const u64v b = bits<u64v>(block), r = bits<u64v>(row);
  u64v even[4] = {b, r, u64v{} + sample, u64v{} + stream};
  u64v odd[4] = {b >> 32, r >> 32, u64v{} + sample, u64v{} + stream};
  philox_lanes(even, seed);
  philox_lanes(odd, seed);
  WordVectors out;
  for (int i = 0; i < 4; ++i) out.word[i] = bits<u32v>((even[i] & 0xFFFFFFFFu) | (odd[i] << 32));
  return out;
}

// u = ((x >> 9) + 0.5) * 2^-23: exact in float, strictly inside (0, 1).
static MMVAE_INLINE f32v uniform(u32v x) {
  return (__builtin_convertvector(bits<i32v>(x >> 9), f32v) + 0.5f) * 0x1p-23f;
}

template <class V>
static MMVAE_INLINE void box_muller(V u0, V u1, V& n0, V& n1) {
  const V radius = square_root(log(u0) * static_cast<Element<V>>(-2));
  const SinCos<V> angle = sincos_turns(u1);
  n0 = radius * angle.cos;
  n1 = radius * angle.sin;
}

// Laplace(0, 1) from a uniform: log 2u below the median, -log 2(1 - u) above; both arguments are exact.
template <class V>
static MMVAE_INLINE V laplace_of(V u) {
  const auto below = u < splat<V>(static_cast<Element<V>>(0.5));
  const V magnitude = log(2 * (below ? u : 1 - u));
  return below ? magnitude : -magnitude;
}

// Four uniforms of a counter to four numbers.
template <Family family, class V>
static MMVAE_INLINE void transform(const V (&u)[4], V (&n)[4]) {
  if (family == Family::laplace) {
    for (int i = 0; i < 4; ++i) n[i] = laplace_of(u[i]);
  } else {
    box_muller(u[0], u[1], n[0], n[1]);
    box_muller(u[2], u[3], n[2], n[3]);
  }
}

template <Family family>
static MMVAE_INLINE void store_noise(float* out, const WordVectors& w) {
  const f32v u[4] = {uniform(w.word[0]), uniform(w.word[1]), uniform(w.word[2]), uniform(w.word[3])};
  f32v n[4];
  transform<family>(u, n);
  store_interleaved(out, n[0], n[1], n[2], n[3]);
}

template <Family family>
static MMVAE_INLINE void store_noise(double* out, const WordVectors& w) {
  constexpr int counters = kLanes<float>, lanes = kLanes<double>;
  uint32_t words[4][counters];
  memcpy(words, w.word, sizeof words);
  for (int first_lane = 0; first_lane < counters; first_lane += lanes) {
    f64v u[4], n[4];
    for (int i = 0; i < 4; ++i)
      for (int l = 0; l < lanes; ++l) u[i][l] = (static_cast<double>(words[i][first_lane + l] >> 9) + 0.5) * 0x1p-23;
    transform<family>(u, n);
    for (int l = 0; l < lanes; ++l)
      for (int i = 0; i < 4; ++i) out[4 * (first_lane + l) + i] = n[i][l];
  }
}

constexpr int kTile = 2048;                   // numbers a tile holds: small enough for L1, large enough to amortise
constexpr int kNoisePad = 4 * kLanes<float>;  // fill_noise writes whole vectors

// Fills out[0 .. 4 * count) (rounded up to 4 * kLanes<float>) with the noise of `count` consecutive counters.
template <Family family, class T>
static void fill_noise(T* out, const Counters& at, int64_t count, uint64_t seed) {
  constexpr int lanes = kLanes<float>;
  const uint32_t q = static_cast<uint32_t>(at.row_blocks);
  uint32_t first_block[lanes], first_row[lanes];
  uint32_t block = static_cast<uint32_t>(at.block), row = at.row, wrapped = 0;
  for (int l = 0; l < lanes; ++l) {
    first_block[l] = block++;
    first_row[l] = row;
    if (++wrapped == q) {
      wrapped = 0;
      block -= q;
      ++row;
    }
  }
  u32v blocks, rows;
  memcpy(&blocks, first_block, sizeof blocks);
  memcpy(&rows, first_row, sizeof rows);
  const uint32_t block_step = lanes % q, row_step = lanes / q, last = static_cast<uint32_t>(at.block) + q;
  for (int64_t i = 0; i < count; i += lanes) {
    store_noise<family>(out + 4 * i, philox_words(blocks, rows, at.sample, at.stream, seed));
    blocks += block_step;
    rows += row_step;
    const i32v over = blocks >= last;
    blocks -= bits<u32v>(over) & q;
    rows += bits<u32v>(over) & 1u;
  }
}

// Cuts rows [begin, end) x dims [0, dim) into tiles of at most kTile numbers (whole rows while they fit) and calls
// f(row_begin, row_end, dim_begin, dim_end). Within a tile a row's noise is `noise_pitch` apart.
static MMVAE_INLINE int64_t noise_pitch(int64_t dims) { return (dims + 3) / 4 * 4; }

template <class F>
static MMVAE_INLINE void for_tiles(int64_t begin, int64_t end, int64_t dim, F f) {
  if (dim == 0) return;
  const int64_t pitch = noise_pitch(dim);
  if (pitch <= kTile) {
    const int64_t rows = kTile / pitch;
    for (int64_t r = begin; r < end; r += rows) f(r, r + rows < end ? r + rows : end, int64_t{0}, dim);
  } else {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t d = 0; d < dim; d += kTile) f(r, r + 1, d, d + kTile < dim ? d + kTile : dim);
  }
}

// The noise of one tile, one sample.
template <class T>
struct NoiseTile {
  alignas(64) T values[kTile + kNoisePad];
  int64_t first_row, pitch;

  void fill(int64_t row_begin, int64_t row_end, int64_t dim_begin, int64_t dim_end, int64_t sample,
            const SeedValue& seed, Family family = Family::normal, uint32_t stream = kStreamNoise) {
    first_row = row_begin;
    pitch = noise_pitch(dim_end - dim_begin);
    const Counters at{counted_row(seed, row_begin), dim_begin / 4, pitch / 4, static_cast<uint32_t>(sample), stream};
    const int64_t count = (row_end - row_begin) * (pitch / 4);
    if (family == Family::laplace) {
      fill_noise<Family::laplace>(values, at, count, seed.key);
    } else {
      fill_noise<Family::normal>(values, at, count, seed.key);
    }
  }
  MMVAE_INLINE const T* row(int64_t r) const { return values + (r - first_row) * pitch; }
};

}  // namespace MMVAE_ISA
}  // namespace mmvae
