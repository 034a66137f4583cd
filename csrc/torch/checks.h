// Argument checks of the native ops. The same sentences as mmvae_fast/_checks.py, which serves the twins and fakes;
// tests hold the two together. std::invalid_argument reaches Python as ValueError.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "stable.h"

namespace mmvae {

class Check {
 public:
  explicit Check(const char* function) : function_(function) {}

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    std::ostringstream text;
    text << "mmvae_fast." << function_ << ": ";
    (text << ... << parts);
    throw std::invalid_argument(text.str());
  }

  // mu, logvar [..., D]
  void gaussian(const Tensor& mu, const Tensor& logvar) const {
    floating("mu", mu);
    if (mu.dim() < 1) fail("mu has no dimensions, expected [..., D]");
    like("logvar", -1, logvar, "mu", mu);
  }

  void samples(const std::optional<int64_t>& n) const {
    if (n.has_value() && *n < 0) fail("n_samples is ", *n, ", expected 0 or more");
  }

  // One number, or [2]: the seed and the first row. Returns it dense.
  Tensor seed(const Tensor& value, const Tensor& like) const {
    const bool one_or_two = value.numel() == 1 || (value.dim() == 1 && value.size(0) == 2);
    if (value.scalar_type() != ScalarType::Long || !one_or_two || !together(value, like))
      fail("seed is ", dtype(value), " ", shape(value),
           ", expected one int64 (the seed) or two (the seed and the first row) on the device of mu");
    return dense(value);
  }

  void family(int64_t value) const {
    if (value != 0 && value != 1) fail("family is ", value, ", expected 0 (normal) or 1 (laplace)");
  }

  // M experts: a list of [B, D], or one stacked [M, B, D]; mask bool [B, M]
  void experts(const Tensors& mu, const Tensors& logvar, const OptTensor& mask, const char* second) const {
    if (mu.size() != logvar.size())
      fail("got ", mu.size(), " mu and ", logvar.size(), " ", second, ", expected as many of each");
    if (mu.empty()) fail("mu is empty, expected at least one expert");
    const Tensor& one = mu[0];
    const bool stacked = mu.size() == 1 && one.dim() == 3;
    floating(stacked ? "mu" : "mu[0]", one);
    if (stacked) {
      like(second, -1, logvar[0], "mu", one);
    } else {
      if (one.dim() != 2) fail("mu[0] has shape ", shape(one), ", expected [B, D]");
      for (size_t m = 0; m < mu.size(); ++m) {
        if (m > 0) like("mu", m, mu[m], "mu[0]", one);
        like(second, m, logvar[m], "mu[0]", one);
      }
    }
    const int64_t count = stacked ? one.size(0) : static_cast<int64_t>(mu.size());
    if (count < 1 || count > kMaxExperts) fail("got ", count, " experts, expected 1 to ", kMaxExperts);
    if (!mask.has_value()) return;
    if (mask->scalar_type() != ScalarType::Bool)
      fail("mask is ", dtype(*mask), ", expected torch.bool (True = observed)");
    const int64_t rows = one.size(stacked ? 1 : 0);
    if (mask->dim() != 2 || mask->size(0) != rows || mask->size(1) != count)
      fail("mask has shape ", shape(*mask), ", expected [B, M] = [", rows, ", ", count, "]");
    if (!together(*mask, one)) fail("mask is on another device than mu");
  }

  // A gradient, a saved tensor, or what the public functions have already checked and expanded.
  void shaped(const char* name, const OptTensor& t, const Shape& expected, ScalarType type, const Tensor& like) const {
    if (!t.has_value()) return;
    if (shape_of(*t) != expected || t->scalar_type() != type || !together(*t, like))
      fail(name, " has shape ", shape(*t), " and type ", dtype(*t), together(*t, like) ? "" : " on another device",
           ", expected ", text(expected), " and ", dtype(type));
  }

  static std::string shape(const Tensor& t) { return text(shape_of(t)); }
  static std::string text(const Shape& sizes) {
    std::ostringstream s;
    s << "[";
    for (size_t i = 0; i < sizes.size(); ++i) s << (i ? ", " : "") << sizes[i];
    s << "]";
    return s.str();
  }

  static std::string dtype(const Tensor& t) { return dtype(t.scalar_type()); }
  static std::string dtype(ScalarType type) {
    switch (type) {
      case ScalarType::Float:
        return "torch.float32";
      case ScalarType::Double:
        return "torch.float64";
      case ScalarType::Half:
        return "torch.float16";
      case ScalarType::BFloat16:
        return "torch.bfloat16";
      case ScalarType::Bool:
        return "torch.bool";
      case ScalarType::Int:
        return "torch.int32";
      case ScalarType::Long:
        return "torch.int64";
      case ScalarType::Byte:
        return "torch.uint8";
      default:
        return torch::headeronly::toString(type);
    }
  }

  void floating(const char* name, const Tensor& t) const {
    const ScalarType type = t.scalar_type();
    if (type != ScalarType::Float && type != ScalarType::Double && type != ScalarType::Half &&
        type != ScalarType::BFloat16)
      fail(name, " is ", dtype(t), ", expected float32, float64, float16 or bfloat16");
  }

  static bool together(const Tensor& a, const Tensor& b) { return a.device() == b.device(); }

 private:
  void like(const char* name, int64_t index, const Tensor& t, const char* other_name, const Tensor& other) const {
    const bool same_shape = t.dim() == other.dim() && shape_of(t) == shape_of(other);
    if (together(t, other) && same_shape && t.scalar_type() == other.scalar_type()) return;
    std::string full = name;
    if (index >= 0) full += "[" + std::to_string(index) + "]";
    if (!together(t, other)) fail(full, " is on another device than ", other_name);
    if (!same_shape) fail(full, " has shape ", shape(t), ", expected ", shape(other), " like ", other_name);
    fail(full, " is ", dtype(t), ", expected ", dtype(other), " like ", other_name);
  }

  const char* function_;
};

}  // namespace mmvae
