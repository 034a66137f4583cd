// The noise of the whole package, written once: Philox4x32-10 (Salmon et al. 2011), counter based.
//
// key = the 64-bit seed (low word, high word); counter = (d / 4, row, sample, stream). A number therefore depends on
// its seed, row, sample and dimension alone: not on batch size, thread, instruction set or device. Rows are counted
// from the seed's first row, so that a part of some rows draws what it would draw among all of them.
#pragma once

#include <stdint.h>

#include "platform.h"
#include "seed.h"

namespace mmvae {
namespace MMVAE_ISA {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

constexpr uint32_t kStreamNoise = 0;       // the normals (or Laplace numbers) of every sample
constexpr uint32_t kStreamComponents = 1;  // which mixture component a row draws

struct Words {
  uint32_t word[4];
};

// The counter of a row of the arguments.
static MMVAE_HD uint32_t counted_row(const SeedValue& seed, int64_t row) {
  return static_cast<uint32_t>(row) + seed.first_row;
}

static MMVAE_HD Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t seed) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxM0) * c0, p1 = static_cast<uint64_t>(kPhiloxM1) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return {{c0, c1, c2, c3}};
}

// floor(u * n) for the 23-bit uniform u = ((x >> 9) + 0.5) * 2^-23 of word x: in integers, so it never rounds to n.
static MMVAE_HD int64_t uniform_index(uint32_t x, int64_t n) {
  return static_cast<int64_t>((2 * static_cast<uint64_t>(x >> 9) + 1) * static_cast<uint64_t>(n) >> 24);
}

// Which of its n available mixture components a row draws.
static MMVAE_HD int64_t choose_component(const SeedValue& seed, int64_t row, int64_t n) {
  return uniform_index(philox(0, counted_row(seed, row), 0, kStreamComponents, seed.key).word[0], n);
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
