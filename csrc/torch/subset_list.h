// A list of subsets for the kernels on CUDA (see SubsetList in kernels/subsets.h): in their arguments, or if it is long
// in memory of this call, which is the current stream's.
#pragma once

#include "subsets.h"

namespace mmvae {

class KernelSubsetArgs {
 public:
  KernelSubsetArgs(const Check& check, const ExpertArgs& experts, const Subsets& subsets, int64_t prior) {
    check_subsets(check, experts.count, subsets, prior);
    const PriorPlace place = static_cast<PriorPlace>(prior);
    list_.everyone = everyone(experts.count);
    list_.prior = place == PriorPlace::full && experts.count == 1 ? PriorPlace::all : place;
    list_.listed = static_cast<int>(subsets.has_value() ? subsets->size() : list_.everyone);
    list_.counting = !subsets.has_value() || counts(*subsets);
    list_.beyond = nullptr;
    if (list_.counting) return;
    if (list_.listed > SubsetList::kHeld) {
      memory_ = on_device(*subsets, experts.one());
      list_.beyond = data<int64_t>(memory_);
    } else {
      std::copy(subsets->begin(), subsets->end(), list_.held);
    }
  }

  const SubsetList& view() const { return list_; }
  int listed() const { return list_.listed; }
  int64_t sums() const { return list_.listed; }

 private:
  bool counts(const std::vector<int64_t>& subsets) const {
    if (list_.listed != list_.everyone) return false;
    for (int s = 0; s < list_.listed; ++s)
      if (subsets[s] != s + 1) return false;
    return true;
  }

  static Tensor on_device(const std::vector<int64_t>& subsets, const Tensor& like) {
    Tensor memory = empty({static_cast<int64_t>(subsets.size())}, ScalarType::Long, like);
    for (size_t begin = 0; begin < subsets.size(); begin += cuda::Numbers::kHeld) {
      cuda::Numbers numbers;
      numbers.to = data<int64_t>(memory) + begin;
      numbers.count = static_cast<int>(std::min<size_t>(subsets.size() - begin, cuda::Numbers::kHeld));
      std::copy_n(subsets.begin() + begin, numbers.count, numbers.number);
      launch_on(like, numbers);
    }
    return memory;
  }

  SubsetList list_;
  OptTensor memory_;
};

}  // namespace mmvae
