#include "checks.h"

namespace mmvae {

static Shape without_last(const Tensor& t) {
  Shape shape = shape_of(t);
  shape.pop_back();
  return shape;
}

static int64_t count(const Shape& shape) {
  int64_t n = 1;
  for (const int64_t s : shape) n *= s;
  return n;
}

static Tensor gaussian_kl(const Tensor& mu, const Tensor& logvar) {
  Check("gaussian_kl").gaussian(mu, logvar);
  const int64_t dim = mu.size(mu.dim() - 1);
  const Shape lead = without_last(mu);
  const RowsOf m(mu), lv(logvar);
  Tensor kl = empty(lead, mu.scalar_type(), mu);
  for_type(mu.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const GaussianKL<T> args{m.as<T>(), lv.as<T>(), dim, data<T>(kl)};
    parallel_rows(count(lead), dim, [&](int64_t b, int64_t e) { table<T>().gaussian_kl(args, b, e); });
  });
  return kl;
}

static std::tuple<Tensor, Tensor> gaussian_kl_backward(const Tensor& grad_kl, const Tensor& mu, const Tensor& logvar) {
  const Check check("gaussian_kl_backward");
  check.gaussian(mu, logvar);
  const int64_t dim = mu.size(mu.dim() - 1);
  const Shape lead = without_last(mu);
  check.shaped("grad_kl", grad_kl, lead, mu.scalar_type());
  const RowsOf m(mu), lv(logvar);
  const Tensor g = dense(grad_kl);
  Tensor grad_mu = empty(shape_of(mu), mu.scalar_type(), mu), grad_logvar = empty(shape_of(mu), mu.scalar_type(), mu);
  for_type(mu.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const GaussianKLBackward<T> args{data<T>(g), m.as<T>(), lv.as<T>(), dim, data<T>(grad_mu), data<T>(grad_logvar)};
    parallel_rows(count(lead), dim, [&](int64_t b, int64_t e) { table<T>().gaussian_kl_backward(args, b, e); });
  });
  return {grad_mu, grad_logvar};
}

STABLE_TORCH_LIBRARY_IMPL(mmvae_fast, CPU, m) {
  m.impl("gaussian_kl", TORCH_BOX(&gaussian_kl));
  m.impl("gaussian_kl_backward", TORCH_BOX(&gaussian_kl_backward));
}

}  // namespace mmvae
