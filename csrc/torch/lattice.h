// The plan of a list of subsets (see Lattice in kernels.h), made once and kept.
#pragma once

#include <cstring>
#include <list>
#include <memory>
#include <unordered_map>

#include "experts.h"

namespace mmvae {

using Subsets = std::optional<std::vector<int64_t>>;

enum class PriorPlace : int64_t { none = 0, full = 1, all = 2 };

// Plans the sums over subsets: every listed subset, and the stepping stones that lead there by adding one expert at a
// time in ascending order, so that a prefix is shared by all subsets that start with it.
class LatticeOf {
 public:
  LatticeOf(const Check& check, int experts, const Subsets& subsets, int64_t prior) {
    if (prior < 0 || prior > 2) check.fail("prior is ", prior, ", expected 0 (none), 1 (full) or 2 (all)");
    if (!subsets.has_value() && experts > 16)
      check.fail("got ", experts, " experts, expected at most 16 when all 2**M - 1 subsets are used; pass subsets=");
    place_ = static_cast<PriorPlace>(prior);
    full_ = (int64_t{1} << experts) - 1;
    Numbers numbers;
    add_root(numbers);
    if (subsets.has_value()) {
      if (subsets->empty()) check.fail("subsets is [], expected a non-empty list of bitmasks");
      for (const int64_t s : *subsets) {
        if (s <= 0 || s > full_)
          check.fail("subsets holds ", s, ", expected bitmasks from 1 to ", full_, " for ", experts, " experts");
        list(check, s, numbers);
      }
    } else {
      for (int64_t s = 1; s <= full_; ++s) list(check, s, numbers);
    }
  }

  Lattice view() const {
    return {static_cast<int>(bits_.size()),
            static_cast<int>(node_.size()),
            bits_.data(),
            parent_.data(),
            expert_.data(),
            reinterpret_cast<const bool*>(is_listed_.data()),
            reinterpret_cast<const bool*>(has_prior_.data()),
            node_.data()};
  }

#if defined(MMVAE_CUDA) && !defined(MMVAE_CUDA_EMULATED)
  // The same in a device's memory, where `memory` keeps it.
  Lattice view_on(const Tensor& like, Tensor& memory) const {
    std::vector<unsigned char> packed;
    const auto pack = [&](const auto& values) {
      const size_t at = (packed.size() + 7) / 8 * 8, bytes = values.size() * sizeof(values[0]);
      packed.resize(at + bytes);
      std::memcpy(packed.data() + at, values.data(), bytes);
      return at;
    };
    const size_t bits = pack(bits_), parent = pack(parent_), expert = pack(expert_), listed = pack(is_listed_),
                 prior = pack(has_prior_), node = pack(node_);
    Tensor host = empty_on_host(static_cast<int64_t>(packed.size()));
    std::memcpy(host.mutable_data_ptr(), packed.data(), packed.size());
    memory = torch::stable::to(host, like.device());
    const auto at = [&](auto* type, size_t offset) {
      return reinterpret_cast<decltype(type)>(data<unsigned char>(memory) + offset);
    };
    using Int64s = const int64_t*;
    using Int32s = const int32_t*;
    using Bools = const bool*;
    return {static_cast<int>(bits_.size()),
            static_cast<int>(node_.size()),
            at(Int64s{}, bits),
            at(Int32s{}, parent),
            at(Int32s{}, expert),
            at(Bools{}, listed),
            at(Bools{}, prior),
            at(Int32s{}, node)};
  }
#endif

 private:
  using Numbers = std::unordered_map<int64_t, int32_t>;  // node of each subset met so far

  void add_root(Numbers& numbers) {
    bits_.push_back(0);
    parent_.push_back(0);
    expert_.push_back(0);
    is_listed_.push_back(0);
    has_prior_.push_back(0);
    numbers[0] = 0;
  }

  int32_t node_for(int64_t subset, Numbers& numbers) {
    const auto found = numbers.find(subset);
    if (found != numbers.end()) return found->second;
    const int highest = 63 - __builtin_clzll(static_cast<unsigned long long>(subset));
    const int32_t parent = node_for(subset & ~(int64_t{1} << highest), numbers);
    const int32_t node = static_cast<int32_t>(bits_.size());
    bits_.push_back(subset);
    parent_.push_back(parent);
    expert_.push_back(highest);
    is_listed_.push_back(0);
    has_prior_.push_back(place_ == PriorPlace::all || (place_ == PriorPlace::full && subset == full_));
    numbers[subset] = node;
    return node;
  }

  void list(const Check& check, int64_t subset, Numbers& numbers) {
    const int32_t node = node_for(subset, numbers);
    if (is_listed_[node]) check.fail("subsets names ", subset, " twice");
    is_listed_[node] = 1;
    node_.push_back(node);
  }

  PriorPlace place_;
  int64_t full_;
  std::vector<int64_t> bits_;
  std::vector<int32_t> parent_, expert_, node_;
  std::vector<uint8_t> is_listed_, has_prior_;
};

// A training loop asks for the same lattices every step: the latest are kept, per thread.
struct KeptLattice {
  int experts;
  int64_t prior;
  Subsets subsets;
  int device;
  std::shared_ptr<const LatticeOf> lattice;
  std::optional<Tensor> memory;  // on a GPU
  Lattice view;
};

inline Lattice lattice_for(const Check& check, const ExpertArgs& experts, const Subsets& subsets, int64_t prior) {
  constexpr size_t kKept = 16;
  // Never destroyed: at exit the device may be gone before this thread's variables are.
  thread_local auto& kept = *new std::list<KeptLattice>();
  const int device = experts.one().is_cpu() ? -1 : experts.one().get_device_index();
  for (auto it = kept.begin(); it != kept.end(); ++it) {
    if (it->experts != experts.count || it->prior != prior || it->device != device || it->subsets != subsets) continue;
    if (it != kept.begin()) kept.splice(kept.begin(), kept, it);
    return it->view;
  }
  KeptLattice made{experts.count, prior, subsets, device, nullptr, std::nullopt, {}};
  made.lattice = std::make_shared<const LatticeOf>(check, experts.count, subsets, prior);
#if defined(MMVAE_CUDA) && !defined(MMVAE_CUDA_EMULATED)
  Tensor memory = experts.one();
  made.view = made.lattice->view_on(experts.one(), memory);
  made.memory = memory;
#else
  made.view = made.lattice->view();
#endif
  kept.push_front(std::move(made));
  if (device < 0 && kept.size() > kKept) kept.pop_back();  // a captured graph may read the device's: those stay
  return kept.front().view;
}

}  // namespace mmvae
