#include <memory>
#include <unordered_map>

#include "experts.h"

namespace mmvae {

enum class PriorPlace : int64_t { none = 0, full = 1, all = 2 };

// Plans the sums over subsets: every listed subset, and the stepping stones that lead there by adding one expert at a
// time in ascending order, so that a prefix is shared by all subsets that start with it.
class LatticeOf {
 public:
  LatticeOf(const Check& check, int experts, const std::optional<std::vector<int64_t>>& subsets, int64_t prior) {
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

// A training loop asks for the same lattice every step: the last one is kept, per thread.
static std::shared_ptr<const LatticeOf> lattice_for(const Check& check, int experts,
                                                    const std::optional<std::vector<int64_t>>& subsets, int64_t prior) {
  struct Kept {
    int experts = -1;
    int64_t prior = -1;
    std::optional<std::vector<int64_t>> subsets;
    std::shared_ptr<const LatticeOf> lattice;
  };
  thread_local Kept kept;
  if (kept.lattice == nullptr || kept.experts != experts || kept.prior != prior || kept.subsets != subsets) {
    auto made = std::make_shared<const LatticeOf>(check, experts, subsets, prior);
    kept = {experts, prior, subsets, std::move(made)};
  }
  return kept.lattice;
}

using Subsets = std::optional<std::vector<int64_t>>;

static std::tuple<Tensor, Tensor, Tensor> mopoe_sample_kl(const Tensors& mu, const Tensors& logvar,
                                                          const OptTensor& mask, const Subsets& subsets, int64_t prior,
                                                          const Tensor& seed) {
  const Check check("mopoe_sample_kl");
  const ExpertArgs experts(check, mu, logvar, mask);
  check.seed(seed);
  const auto lattice = lattice_for(check, experts.count, subsets, prior);
  Tensor z = empty(experts.joint_shape(), experts.dtype, mu[0]);
  Tensor kl = empty({experts.rows}, experts.dtype, mu[0]);
  Tensor subset = empty({experts.rows}, ScalarType::Long, mu[0]);
  for_type(experts.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Lattice view = lattice->view();
    const MoPoE<T> args{experts.as<T>(), view,       experts.rows, experts.dim,
                        seed_of(seed),   data<T>(z), data<T>(kl),  data<int64_t>(subset)};
    parallel_rows(experts.rows, experts.dim * (experts.count + view.nodes),
                  [&](int64_t b, int64_t e) { table<T>().mopoe_sample_kl(args, b, e); });
  });
  return {z, kl, subset};
}

static Tensors mopoe_sample_kl_backward(const OptTensor& grad_z, const OptTensor& grad_kl, const Tensors& mu,
                                        const Tensors& logvar, const OptTensor& mask, const Subsets& subsets,
                                        int64_t prior, const Tensor& z, const Tensor& subset, const Tensor& seed) {
  const Check check("mopoe_sample_kl_backward");
  const ExpertArgs experts(check, mu, logvar, mask);
  check.seed(seed);
  const auto lattice = lattice_for(check, experts.count, subsets, prior);
  check.shaped("z", z, experts.joint_shape(), experts.dtype);
  check.shaped("grad_z", grad_z, experts.joint_shape(), experts.dtype);
  check.shaped("grad_kl", grad_kl, {experts.rows}, experts.dtype);
  check.shaped("subset", subset, {experts.rows}, ScalarType::Long);
  const OptTensor gz = dense(grad_z), gk = dense(grad_kl);
  const Tensor sample = dense(z), chosen = dense(subset);
  const Lattice view = lattice->view();
  for (int64_t r = 0; r < experts.rows; ++r) {
    const int64_t s = data<int64_t>(chosen)[r];
    if (s < -1 || s >= view.listed) check.fail("subset holds ", s, ", expected -1 to ", view.listed - 1);
  }
  Tensors out = expert_grads(mu);
  for_type(experts.dtype, [&](auto zero) {
    using T = decltype(zero);
    const MoPoEBackward<T> args{experts.as<T>(),       view,
                                experts.rows,          experts.dim,
                                seed_of(seed),         data<T>(sample),
                                data<int64_t>(chosen), data<T>(gz),
                                data<T>(gk),           grads_in<T>(out, experts)};
    parallel_rows(experts.rows, experts.dim * (experts.count + view.nodes) * 2,
                  [&](int64_t b, int64_t e) { table<T>().mopoe_sample_kl_backward(args, b, e); });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mmvae_fast, CPU, m) {
  m.impl("mopoe_sample_kl", TORCH_BOX(&mopoe_sample_kl));
  m.impl("mopoe_sample_kl_backward", TORCH_BOX(&mopoe_sample_kl_backward));
}

}  // namespace mmvae
