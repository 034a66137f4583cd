// What noise is drawn from: a 64-bit seed and, where rows are a part of more, the number that the first of them has
// there.
#pragma once

#include <stdint.h>

#include "platform.h"

namespace mmvae {

// As read where the kernel runs. Row r of the arguments draws the noise of row first_row + r: counters of 32 bits,
// which wrap.
struct SeedValue {
  uint64_t key;
  uint32_t first_row;
};

// As a kernel is given it: in the device's memory, so that a captured CUDA graph draws anew at every replay.
struct Seed {
  const int64_t* numbers;  // the seed, and where `has_first_row` the first row
  bool has_first_row;
  MMVAE_HD SeedValue read() const {
    return {static_cast<uint64_t>(numbers[0]), has_first_row ? static_cast<uint32_t>(numbers[1]) : 0};
  }
};

}  // namespace mmvae
