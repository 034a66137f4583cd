// The one place that knows LibTorch's stable ABI: aliases and the few helpers the bindings share.
//
// Only headers under torch/csrc/stable and torch/headeronly may be included here, so that one binary serves every
// torch from 2.10 on (TORCH_TARGET_VERSION is set in CMakeLists.txt).
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../kernels/kernels.h"

namespace mmvae {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;
using Shape = std::vector<int64_t>;

inline Shape shape_of(const Tensor& t) {
  Shape shape(t.dim());
  for (size_t i = 0; i < shape.size(); ++i) shape[i] = t.size(i);
  return shape;
}

// A new contiguous tensor of `like`'s device; the C shim costs a third of a dispatcher call.
inline Tensor empty(const Shape& shape, ScalarType dtype, const Tensor& like) {
  std::vector<int64_t> strides(shape.size());
  int64_t step = 1;
  for (int i = static_cast<int>(shape.size()) - 1; i >= 0; --i) {
    strides[i] = step;
    step *= std::max<int64_t>(shape[i], 1);
  }
  const auto device = like.device();
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(device.type())), device.index(), &handle));
  return Tensor(handle);
}

// The tensor itself when it is contiguous, else a contiguous copy.
inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

inline OptTensor dense(const OptTensor& t) { return t.has_value() ? OptTensor(dense(*t)) : t; }

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
const T* data(const OptTensor& t) {
  return t.has_value() ? data<T>(*t) : nullptr;
}
template <class T>
T* data(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Rows of a tensor [..., D] whose leading dimensions are flattened. Keeps a copy alive where the strides do not allow
// that without one.
class RowsOf {
 public:
  explicit RowsOf(const Tensor& t) : kept_(t) {
    if (!collapse()) {
      kept_ = torch::stable::contiguous(t);
      stride_ = t.dim() > 0 ? t.size(t.dim() - 1) : 1;
    }
  }
  template <class T>
  Rows<const T> as() const {
    return {data<T>(kept_), stride_};
  }

 private:
  bool collapse() {
    const int64_t last = kept_.dim() - 1;
    if (kept_.size(last) > 1 && kept_.stride(last) != 1) return false;
    stride_ = kept_.size(last);
    int64_t rows_below = 0;  // 0: no dimension of more than one row seen yet
    for (int64_t i = last - 1; i >= 0; --i) {
      if (kept_.size(i) == 1) continue;
      if (rows_below == 0) {
        stride_ = kept_.stride(i);
        rows_below = kept_.size(i);
      } else {
        if (kept_.stride(i) != stride_ * rows_below) return false;
        rows_below *= kept_.size(i);
      }
    }
    return true;
  }
  Tensor kept_;
  int64_t stride_ = 0;
};

// Calls f with a zero of the tensor's element type (checks have made sure it is one of the four).
template <class F>
void for_type(ScalarType dtype, F f) {
  switch (dtype) {
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(bfloat16{});
    case ScalarType::Half:
      return f(float16{});
    default:
      return f(float{});
  }
}

// Of a dense tensor of one or two numbers, see Check::seed.
inline Seed seed_in(const Tensor& seed) { return {data<int64_t>(seed), seed.numel() == 2}; }

inline Shape sampled(const std::optional<int64_t>& n_samples, const Shape& shape) {
  if (!n_samples.has_value()) return shape;
  Shape with{*n_samples};
  with.insert(with.end(), shape.begin(), shape.end());
  return with;
}

// The type of KLs and log-probabilities of elements of this type.
inline ScalarType arithmetic(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace mmvae
