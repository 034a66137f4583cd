// From a caller's list of subsets to what the kernels of this copy of the op files read: KernelSubsetArgs, which checks
// the list, keeps what the kernels need while they are started, and shows it as view().
#pragma once

#include "experts.h"

namespace mmvae {

using Subsets = std::optional<std::vector<int64_t>>;  // bitmasks; none: all 2^M - 1 in counting order

inline int64_t everyone(int experts) { return (int64_t{1} << experts) - 1; }

inline void check_subsets(const Check& check, int experts, const Subsets& subsets, int64_t prior) {
  if (prior < 0 || prior > 2) check.fail("prior is ", prior, ", expected 0 (none), 1 (full) or 2 (all)");
  if (!subsets.has_value()) {
    if (experts > 16)
      check.fail("got ", experts, " experts, expected at most 16 when all 2**M - 1 subsets are used; pass subsets=");
    return;
  }
  if (subsets->empty()) check.fail("subsets is [], expected a non-empty list of bitmasks");
  for (const int64_t s : *subsets) {
    if (s <= 0 || s > everyone(experts))
      check.fail("subsets holds ", s, ", expected bitmasks from 1 to ", everyone(experts), " for ", experts,
                 " experts");
  }
  std::vector<int64_t> sorted(*subsets);
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) check.fail("subsets names ", *twice, " twice");
}

}  // namespace mmvae

#ifdef MMVAE_CUDA
#include "subset_list.h"
#else
#include "lattice.h"
#endif
