// How a kernel is told which subsets of the experts to work on: one on the CPU gets a lattice, one on CUDA a list.
#pragma once

#include <stdint.h>

#include "platform.h"

namespace mmvae {

// In which subsets the prior expert sits; full: that of all experts.
enum class PriorPlace : int32_t { none = 0, full = 1, all = 2 };

// How the posteriors of the listed subsets follow from one another: each node adds one expert to its parent's sums.
// Node 0 is the empty set; parents come before children.
struct Lattice {
  int nodes, listed;
  const int64_t* bits;    // [nodes] the subset as a bitmask
  const int32_t* parent;  // [nodes]
  const int32_t* expert;  // [nodes] the expert this node adds
  const bool* has_prior;  // [nodes] whether the prior expert sits in it
  const int32_t* node;    // [listed] node of each listed subset, in the caller's order
};

// The listed subsets as bitmasks, by value: nothing to copy to a device or to keep there while a graph may be replayed.
struct SubsetList {
  static constexpr int kHeld = 120;  // with them the largest arguments of a kernel are just below 4096 bytes

  int listed;
  PriorPlace prior;       // `full` only where that is not every subset: one expert makes it `all`
  int64_t everyone;       // the subset of all experts
  bool counting;          // all subsets, in counting order
  const int64_t* beyond;  // [listed] in the device's memory, where they are too many to be held; else nullptr
  int64_t held[kHeld];

  MMVAE_HD int64_t members(int64_t index) const {
    return counting ? index + 1 : beyond != nullptr ? beyond[index] : held[index];
  }
  MMVAE_HD bool has_prior(int64_t members) const {
    return prior == PriorPlace::all || (prior == PriorPlace::full && members == everyone);
  }
};

#ifdef MMVAE_CUDA
using KernelSubsets = SubsetList;
#else
using KernelSubsets = Lattice;
#endif

}  // namespace mmvae
