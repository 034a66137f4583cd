// product_of_experts and poe_sample_kl: one backward serves both.
#include "experts.h"

namespace mmvae {

static std::tuple<Tensor, Tensor> product_of_experts(const Tensors& mu, const Tensors& logvar, const OptTensor& mask,
                                                     bool prior) {
  const ExpertArgs experts(Check("product_of_experts"), mu, logvar, mask);
  Tensor joint_mu = empty(experts.joint_shape(), experts.dtype, mu[0]);
  Tensor joint_logvar = empty(experts.joint_shape(), experts.dtype, mu[0]);
  for_type(experts.dtype, [&](auto zero) {
    using T = decltype(zero);
    const PoE<T> args{
        experts.as<T>(), prior,  experts.rows, experts.dim, data<T>(joint_mu), data<T>(joint_logvar), 0, 0,
        nullptr,         nullptr};
    parallel_rows(experts.rows, experts.dim * experts.count,
                  [&](int64_t b, int64_t e) { table<T>().product_of_experts(args, b, e); });
  });
  return {joint_mu, joint_logvar};
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> poe_sample_kl(const Tensors& mu, const Tensors& logvar,
                                                                const OptTensor& mask, bool prior,
                                                                const std::optional<int64_t>& n_samples,
                                                                const Tensor& seed) {
  const Check check("poe_sample_kl");
  const ExpertArgs experts(check, mu, logvar, mask);
  check.samples(n_samples);
  check.seed(seed);
  const int64_t samples = n_samples.value_or(1);
  Tensor z = empty(sampled(n_samples, experts.joint_shape()), experts.dtype, mu[0]);
  Tensor joint_mu = empty(experts.joint_shape(), experts.dtype, mu[0]);
  Tensor joint_logvar = empty(experts.joint_shape(), experts.dtype, mu[0]);
  Tensor kl = empty({experts.rows}, experts.dtype, mu[0]);
  for_type(experts.dtype, [&](auto zero) {
    using T = decltype(zero);
    const PoE<T> args{experts.as<T>(),       prior,   experts.rows,  experts.dim, data<T>(joint_mu),
                      data<T>(joint_logvar), samples, seed_of(seed), data<T>(z),  data<T>(kl)};
    parallel_rows(experts.rows, experts.dim * (experts.count + samples),
                  [&](int64_t b, int64_t e) { table<T>().poe_sample_kl(args, b, e); });
  });
  return {z, joint_mu, joint_logvar, kl};
}

// Without z (and its seed): product_of_experts.
static Tensors backward(const Check& check, const OptTensor& grad_z, const OptTensor& grad_mu,
                        const OptTensor& grad_logvar, const OptTensor& grad_kl, const Tensors& mu,
                        const Tensors& logvar, const OptTensor& mask, const OptTensor& z, const Tensor& joint_mu,
                        const Tensor& joint_logvar, const OptTensor& seed) {
  const ExpertArgs experts(check, mu, logvar, mask);
  const Shape joint = experts.joint_shape();
  check.shaped("joint_mu", joint_mu, joint, experts.dtype);
  check.shaped("joint_logvar", joint_logvar, joint, experts.dtype);
  check.shaped("grad_mu", grad_mu, joint, experts.dtype);
  check.shaped("grad_logvar", grad_logvar, joint, experts.dtype);
  check.shaped("grad_kl", grad_kl, {experts.rows}, experts.dtype);
  int64_t samples = 0;
  if (z.has_value()) {
    check.seed(*seed);
    samples = z->dim() == 2 ? 1 : z->size(0);
    check.shaped("z", z, z->dim() == 2 ? joint : sampled(samples, joint), experts.dtype);
    check.shaped("grad_z", grad_z, shape_of(*z), experts.dtype);
  }
  const OptTensor gz = dense(grad_z), gm = dense(grad_mu), gl = dense(grad_logvar), gk = dense(grad_kl),
                  sample = dense(z);
  const Tensor jm = dense(joint_mu), jl = dense(joint_logvar);
  Tensors out = expert_grads(mu);
  for_type(experts.dtype, [&](auto zero) {
    using T = decltype(zero);
    const PoEBackward<T> args{experts.as<T>(), experts.rows,
                              experts.dim,     data<T>(jm),
                              data<T>(jl),     data<T>(gm),
                              data<T>(gl),     grads_in<T>(out, experts),
                              samples,         z.has_value() ? seed_of(*seed) : 0,
                              data<T>(sample), data<T>(gz),
                              data<T>(gk)};
    parallel_rows(experts.rows, experts.dim * (experts.count + samples + 1),
                  [&](int64_t b, int64_t e) { table<T>().poe_backward(args, b, e); });
  });
  return out;
}

static Tensors product_of_experts_backward(const OptTensor& grad_mu, const OptTensor& grad_logvar, const Tensors& mu,
                                           const Tensors& logvar, const OptTensor& mask, const Tensor& joint_mu,
                                           const Tensor& joint_logvar) {
  return backward(Check("product_of_experts_backward"), std::nullopt, grad_mu, grad_logvar, std::nullopt, mu, logvar,
                  mask, std::nullopt, joint_mu, joint_logvar, std::nullopt);
}

static Tensors poe_sample_kl_backward(const OptTensor& grad_z, const OptTensor& grad_mu, const OptTensor& grad_logvar,
                                      const OptTensor& grad_kl, const Tensors& mu, const Tensors& logvar,
                                      const OptTensor& mask, const Tensor& z, const Tensor& joint_mu,
                                      const Tensor& joint_logvar, const Tensor& seed) {
  return backward(Check("poe_sample_kl_backward"), grad_z, grad_mu, grad_logvar, grad_kl, mu, logvar, mask, z, joint_mu,
                  joint_logvar, seed);
}

STABLE_TORCH_LIBRARY_IMPL(mmvae_fast, CPU, m) {
  m.impl("product_of_experts", TORCH_BOX(&product_of_experts));
  m.impl("product_of_experts_backward", TORCH_BOX(&product_of_experts_backward));
  m.impl("poe_sample_kl", TORCH_BOX(&poe_sample_kl));
  m.impl("poe_sample_kl_backward", TORCH_BOX(&poe_sample_kl_backward));
}

}  // namespace mmvae
