// The plan of a list of subsets for the kernels on the CPU (see Lattice in kernels/subsets.h), made once and kept.
#pragma once

#include <list>
#include <memory>
#include <unordered_map>

#include "subsets.h"

namespace mmvae {

// Plans the sums over subsets: every listed subset, and the stepping stones that lead there by adding one expert at a
// time in ascending order, so that a prefix is shared by all subsets that start with it.
class LatticeOf {
 public:
  LatticeOf(int experts, const Subsets& subsets, PriorPlace prior) : prior_(prior), full_(everyone(experts)) {
    bits_.push_back(0);
    parent_.push_back(0);
    expert_.push_back(0);
    has_prior_.push_back(0);
    Numbers numbers{{0, 0}};
    if (subsets.has_value()) {
      for (const int64_t s : *subsets) node_.push_back(node_for(s, numbers));
    } else {
      for (int64_t s = 1; s <= full_; ++s) node_.push_back(node_for(s, numbers));
    }
  }

  Lattice view() const {
    return {static_cast<int>(bits_.size()),
            static_cast<int>(node_.size()),
            bits_.data(),
            parent_.data(),
            expert_.data(),
            reinterpret_cast<const bool*>(has_prior_.data()),
            node_.data()};
  }

 private:
  using Numbers = std::unordered_map<int64_t, int32_t>;  // node of each subset met so far

  int32_t node_for(int64_t subset, Numbers& numbers) {
    const auto found = numbers.find(subset);
    if (found != numbers.end()) return found->second;
    const int highest = 63 - __builtin_clzll(static_cast<unsigned long long>(subset));
    const int32_t parent = node_for(subset & ~(int64_t{1} << highest), numbers);
    const int32_t node = static_cast<int32_t>(bits_.size());
    bits_.push_back(subset);
    parent_.push_back(parent);
    expert_.push_back(highest);
    has_prior_.push_back(prior_ == PriorPlace::all || (prior_ == PriorPlace::full && subset == full_));
    numbers[subset] = node;
    return node;
  }

  PriorPlace prior_;
  int64_t full_;
  std::vector<int64_t> bits_;
  std::vector<int32_t> parent_, expert_, node_;
  std::vector<uint8_t> has_prior_;
};

// A training loop asks for the same lattices every step: a thread keeps its latest for as long as it lives. (Shared by
// all threads they would need a lock, which a process that is forked meanwhile would find locked for ever.)
class KernelSubsetArgs {
 public:
  KernelSubsetArgs(const Check& check, const ExpertArgs& experts, const Subsets& subsets, int64_t prior)
      : lattice_(find(check, experts.count, subsets, prior)) {}

  Lattice view() const { return lattice_->view(); }
  int listed() const { return view().listed; }
  int64_t sums() const { return view().nodes; }  // that a kernel forms

 private:
  using Pointer = std::shared_ptr<const LatticeOf>;
  struct Kept {
    int experts;
    int64_t prior;
    Subsets subsets;
    Pointer lattice;
  };

  static Pointer find(const Check& check, int experts, const Subsets& subsets, int64_t prior) {
    constexpr size_t kKept = 16;
    thread_local std::list<Kept> kept;
    for (auto it = kept.begin(); it != kept.end(); ++it) {
      if (it->experts != experts || it->prior != prior || it->subsets != subsets) continue;
      if (it != kept.begin()) kept.splice(kept.begin(), kept, it);
      return it->lattice;
    }
    check_subsets(check, experts, subsets, prior);
    kept.push_front(
        {experts, prior, subsets, std::make_shared<const LatticeOf>(experts, subsets, static_cast<PriorPlace>(prior))});
    if (kept.size() > kKept) kept.pop_back();
    return kept.front().lattice;
  }

  Pointer lattice_;
};

}  // namespace mmvae
