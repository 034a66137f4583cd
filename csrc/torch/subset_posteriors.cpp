#include "subsets.h"

namespace mmvae {

static std::tuple<Tensor, Tensor, Tensor, Tensor> subset_posteriors(const Tensors& mu, const Tensors& logvar,
                                                                    const OptTensor& mask, const Subsets& list,
                                                                    int64_t prior) {
  const Check check("subset_posteriors");
  const ExpertArgs experts(check, mu, logvar, mask);
  const KernelSubsetArgs subsets(check, experts, list, prior);
  const Shape moments{subsets.listed(), experts.rows, experts.dim}, by_row{subsets.listed(), experts.rows};
  Tensor joint_mu = empty(moments, experts.dtype, mu[0]), joint_logvar = empty(moments, experts.dtype, mu[0]);
  Tensor kl = empty(by_row, arithmetic(experts.dtype), mu[0]), available = empty(by_row, ScalarType::Bool, mu[0]);
  for_type(experts.dtype, [&](auto zero) {
    using S = decltype(zero);
    const SubsetPosteriors<S> args{
        experts.as<S>(),       subsets.view(),          experts.rows,         experts.dim, data<S>(joint_mu),
        data<S>(joint_logvar), data<Arithmetic<S>>(kl), data<bool>(available)};
    run(&Table<S>::subset_posteriors, args, experts.rows, experts.dim * (experts.count + 4 * subsets.sums()), mu[0]);
  });
  return {joint_mu, joint_logvar, kl, available};
}

static Tensors subset_posteriors_backward(const OptTensor& grad_mu, const OptTensor& grad_logvar,
                                          const OptTensor& grad_kl, const Tensors& mu, const Tensors& logvar,
                                          const OptTensor& mask, const Subsets& list, int64_t prior) {
  const Check check("subset_posteriors_backward");
  const ExpertArgs experts(check, mu, logvar, mask);
  const KernelSubsetArgs subsets(check, experts, list, prior);
  const Shape moments{subsets.listed(), experts.rows, experts.dim}, by_row{subsets.listed(), experts.rows};
  check.shaped("grad_mu", grad_mu, moments, experts.dtype, mu[0]);
  check.shaped("grad_logvar", grad_logvar, moments, experts.dtype, mu[0]);
  check.shaped("grad_kl", grad_kl, by_row, arithmetic(experts.dtype), mu[0]);
  const OptTensor gm = dense(grad_mu), gl = dense(grad_logvar), gk = dense(grad_kl);
  Tensors out = expert_grads(mu);
  for_type(experts.dtype, [&](auto zero) {
    using S = decltype(zero);
    const SubsetPosteriorsBackward<S> args{
        experts.as<S>(),         subsets.view(),           experts.rows, experts.dim, data<S>(gm), data<S>(gl),
        data<Arithmetic<S>>(gk), grads_in<S>(out, experts)};
    run(&Table<S>::subset_posteriors_backward, args, experts.rows, experts.dim * (experts.count + 4 * subsets.sums()),
        mu[0]);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mmvae_fast, MMVAE_DISPATCH_KEY, m) {
  m.impl("subset_posteriors", TORCH_BOX(&subset_posteriors));
  m.impl("subset_posteriors_backward", TORCH_BOX(&subset_posteriors_backward));
}

}  // namespace mmvae
