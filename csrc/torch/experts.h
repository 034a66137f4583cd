// From lists of tensors to the kernels' view of the experts.
#pragma once

#include "checks.h"
#include "device.h"

namespace mmvae {

// Checked experts, and whatever copies their strides made necessary, for as long as this object lives.
class ExpertArgs {
 public:
  ExpertArgs(const Check& check, const Tensors& mu, const Tensors& logvar, const OptTensor& mask,
             const char* second = "logvar")
      : mask_(mask) {
    check.experts(mu, logvar, mask, second);
    const Tensor& one = mu[0];
    stacked = mu.size() == 1 && one.dim() == 3;
    count = static_cast<int>(stacked ? one.size(0) : static_cast<int64_t>(mu.size()));
    rows = one.size(stacked ? 1 : 0);
    dim = one.size(stacked ? 2 : 1);
    dtype = one.scalar_type();
    keep(mu, mu_);
    keep(logvar, logvar_);
  }

  template <class S>
  Experts<S> as() const {
    Experts<S> e;
    e.count = count;
    for (int m = 0; m < count; ++m) {
      e.mu[m] = rows_of<S>(mu_, m);
      e.logvar[m] = rows_of<S>(logvar_, m);
    }
    e.mask = {nullptr, 0, 0};
    if (mask_.has_value()) e.mask = {data<bool>(*mask_), mask_->stride(0), mask_->stride(1)};
    return e;
  }

  Shape joint_shape() const { return {rows, dim}; }
  const Tensor& one() const { return mu_[0]; }  // whose device and type all share

  int count;
  int64_t rows, dim;
  ScalarType dtype;
  bool stacked;  // one tensor [M, B, D]

 private:
  void keep(const Tensors& from, Tensors& to) const {
    to.reserve(from.size());
    for (const Tensor& t : from) {
      const int64_t last = t.dim() - 1;
      to.push_back(t.size(last) > 1 && t.stride(last) != 1 ? torch::stable::contiguous(t) : t);
    }
  }
  template <class S>
  Rows<const S> rows_of(const Tensors& list, int m) const {
    if (!stacked) return {data<S>(list[m]), list[m].stride(0)};
    return {data<S>(list[0]) + m * list[0].stride(0), list[0].stride(1)};
  }

  Tensors mu_, logvar_;
  OptTensor mask_;
};

// Uninitialised gradients of experts: one tensor like each of mu, then one like each of logvar.
inline Tensors expert_grads(const Tensors& mu) {
  Tensors grads;
  grads.reserve(2 * mu.size());
  for (int side = 0; side < 2; ++side)
    for (const Tensor& t : mu) grads.push_back(empty(shape_of(t), t.scalar_type(), t));
  return grads;
}

// The kernels' view of them.
template <class S>
ExpertGrads<S> grads_in(Tensors& grads, const ExpertArgs& args) {
  ExpertGrads<S> view;
  view.dim = args.dim;
  const int64_t step = args.rows * args.dim;
  for (int m = 0; m < args.count; ++m) {
    view.mu[m] = args.stacked ? data<S>(grads[0]) + m * step : data<S>(grads[m]);
    view.logvar[m] = args.stacked ? data<S>(grads[1]) + m * step : data<S>(grads[args.count + m]);
  }
  return view;
}

}  // namespace mmvae
