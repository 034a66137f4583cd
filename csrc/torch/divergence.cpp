// gaussian_kl and laplace_kl: one kernel, two families.
#include "checks.h"
#include "device.h"

namespace mmvae {

static Shape without_last(const Tensor& t) {
  Shape shape = shape_of(t);
  shape.pop_back();
  return shape;
}

// The arguments both directions share, checked. A prior comes expanded to mu's shape (strides of 0 cost nothing).
struct DivergenceArgs {
  DivergenceArgs(const Check& check, const Tensor& mu, const Tensor& logvar, const OptTensor& prior_mu,
                 const OptTensor& prior_logvar, int64_t family)
      : mu((check.gaussian(mu, logvar), mu)), logvar(logvar), lead(without_last(mu)) {
    check.family(family);
    dim = mu.size(mu.dim() - 1);
    rows = 1;
    for (const int64_t n : lead) rows *= n;
    check.shaped("prior_mu", prior_mu, shape_of(mu), mu.scalar_type(), mu);
    check.shaped("prior_logvar", prior_logvar, shape_of(mu), mu.scalar_type(), mu);
    if (prior_mu.has_value()) this->prior_mu.emplace(*prior_mu);
    if (prior_logvar.has_value()) this->prior_logvar.emplace(*prior_logvar);
  }
  template <class S>
  static Rows<const S> rows_of(const std::optional<RowsOf>& t) {
    return t.has_value() ? t->as<S>() : Rows<const S>{nullptr, 0};
  }

  RowsOf mu, logvar;
  std::optional<RowsOf> prior_mu, prior_logvar;
  Shape lead;
  int64_t rows, dim;
};

static Tensor divergence(const char* function, Family family, const Tensor& mu, const Tensor& logvar,
                         const OptTensor& prior_mu, const OptTensor& prior_logvar) {
  const DivergenceArgs a(Check(function), mu, logvar, prior_mu, prior_logvar, static_cast<int64_t>(family));
  Tensor kl = empty(a.lead, arithmetic(mu.scalar_type()), mu);
  for_type(mu.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const Divergence<S> args{
        a.mu.as<S>(), a.logvar.as<S>(), a.rows_of<S>(a.prior_mu), a.rows_of<S>(a.prior_logvar), a.rows,
        a.dim,        family,           data<Arithmetic<S>>(kl)};
    run(&Table<S>::divergence, args, a.rows, a.dim, mu);
  });
  return kl;
}

// Gradients of mu and logvar, and with `prior_grads` of those priors that are there.
static Tensors divergence_backward(const char* function, Family family, const Tensor& grad_kl, const Tensor& mu,
                                   const Tensor& logvar, const OptTensor& prior_mu, const OptTensor& prior_logvar,
                                   bool prior_grads) {
  const Check check(function);
  const DivergenceArgs a(check, mu, logvar, prior_mu, prior_logvar, static_cast<int64_t>(family));
  check.shaped("grad_kl", grad_kl, a.lead, arithmetic(mu.scalar_type()), mu);
  const Tensor g = dense(grad_kl);
  Tensors out;
  const auto add = [&]() { out.push_back(empty(shape_of(mu), mu.scalar_type(), mu)); };
  add();
  add();
  const bool of_mu = prior_grads && prior_mu.has_value(), of_logvar = prior_grads && prior_logvar.has_value();
  if (of_mu) add();
  if (of_logvar) add();
  for_type(mu.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const DivergenceBackward<S> args{data<Arithmetic<S>>(g),
                                     a.mu.as<S>(),
                                     a.logvar.as<S>(),
                                     a.rows_of<S>(a.prior_mu),
                                     a.rows_of<S>(a.prior_logvar),
                                     a.rows,
                                     a.dim,
                                     family,
                                     data<S>(out[0]),
                                     data<S>(out[1]),
                                     of_mu ? data<S>(out[2]) : nullptr,
                                     of_logvar ? data<S>(out.back()) : nullptr};
    run(&Table<S>::divergence_backward, args, a.rows, a.dim, mu);
  });
  return out;
}

static Tensor gaussian_kl(const Tensor& mu, const Tensor& logvar, const OptTensor& prior_mu,
                          const OptTensor& prior_logvar) {
  return divergence("gaussian_kl", Family::normal, mu, logvar, prior_mu, prior_logvar);
}

static Tensors gaussian_kl_backward(const Tensor& grad_kl, const Tensor& mu, const Tensor& logvar,
                                    const OptTensor& prior_mu, const OptTensor& prior_logvar, bool prior_grads) {
  return divergence_backward("gaussian_kl_backward", Family::normal, grad_kl, mu, logvar, prior_mu, prior_logvar,
                             prior_grads);
}

static Tensor laplace_kl(const Tensor& mu, const Tensor& logvar, const OptTensor& prior_mu,
                         const OptTensor& prior_logvar) {
  return divergence("laplace_kl", Family::laplace, mu, logvar, prior_mu, prior_logvar);
}

static Tensors laplace_kl_backward(const Tensor& grad_kl, const Tensor& mu, const Tensor& logvar,
                                   const OptTensor& prior_mu, const OptTensor& prior_logvar, bool prior_grads) {
  return divergence_backward("laplace_kl_backward", Family::laplace, grad_kl, mu, logvar, prior_mu, prior_logvar,
                             prior_grads);
}

STABLE_TORCH_LIBRARY_IMPL(mmvae_fast, MMVAE_DISPATCH_KEY, m) {
  m.impl("gaussian_kl", TORCH_BOX(&gaussian_kl));
  m.impl("gaussian_kl_backward", TORCH_BOX(&gaussian_kl_backward));
  m.impl("laplace_kl", TORCH_BOX(&laplace_kl));
  m.impl("laplace_kl_backward", TORCH_BOX(&laplace_kl_backward));
}

}  // namespace mmvae
