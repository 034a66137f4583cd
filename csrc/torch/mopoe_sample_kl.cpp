#include "subsets.h"

namespace mmvae {

static std::tuple<Tensor, Tensor, Tensor> mopoe_sample_kl(const Tensors& mu, const Tensors& logvar,
                                                          const OptTensor& mask, const Subsets& list, int64_t prior,
                                                          const Tensor& seed) {
  const Check check("mopoe_sample_kl");
  const ExpertArgs experts(check, mu, logvar, mask);
  const Tensor key = check.seed(seed, mu[0]);
  const KernelSubsetArgs subsets(check, experts, list, prior);
  Tensor z = empty(experts.joint_shape(), experts.dtype, mu[0]);
  Tensor kl = empty({experts.rows}, arithmetic(experts.dtype), mu[0]);
  Tensor subset = empty({experts.rows}, ScalarType::Long, mu[0]);
  for_type(experts.dtype, [&](auto zero) {
    using S = decltype(zero);
    const MoPoE<S> args{experts.as<S>(), subsets.view(),          experts.rows,         experts.dim, seed_in(key),
                        data<S>(z),      data<Arithmetic<S>>(kl), data<int64_t>(subset)};
    run(&Table<S>::mopoe_sample_kl, args, experts.rows, experts.dim * (experts.count + subsets.sums()), mu[0]);
  });
  return {z, kl, subset};
}

// Where this cannot be read, the kernels take anything out of range for -1.
static void check_choices(const Check& check, const int64_t* chosen, int64_t rows, int listed) {
  for (int64_t r = 0; r < rows; ++r)
    if (chosen[r] < -1 || chosen[r] >= listed) check.fail("subset holds ", chosen[r], ", expected -1 to ", listed - 1);
}

static Tensors mopoe_sample_kl_backward(const OptTensor& grad_z, const OptTensor& grad_kl, const Tensors& mu,
                                        const Tensors& logvar, const OptTensor& mask, const Subsets& list,
                                        int64_t prior, const Tensor& z, const Tensor& subset, const Tensor& seed) {
  const Check check("mopoe_sample_kl_backward");
  const ExpertArgs experts(check, mu, logvar, mask);
  const Tensor key = check.seed(seed, mu[0]);
  const KernelSubsetArgs subsets(check, experts, list, prior);
  check.shaped("z", z, experts.joint_shape(), experts.dtype, mu[0]);
  check.shaped("grad_z", grad_z, experts.joint_shape(), experts.dtype, mu[0]);
  check.shaped("grad_kl", grad_kl, {experts.rows}, arithmetic(experts.dtype), mu[0]);
  check.shaped("subset", subset, {experts.rows}, ScalarType::Long, mu[0]);
  const OptTensor gz = dense(grad_z), gk = dense(grad_kl);
  const Tensor sample = dense(z), chosen = dense(subset);
  if (kReadable) check_choices(check, data<int64_t>(chosen), experts.rows, subsets.listed());
  Tensors out = expert_grads(mu);
  for_type(experts.dtype, [&](auto zero) {
    using S = decltype(zero);
    const MoPoEBackward<S> args{experts.as<S>(),
                                subsets.view(),
                                experts.rows,
                                experts.dim,
                                seed_in(key),
                                data<S>(sample),
                                data<int64_t>(chosen),
                                data<S>(gz),
                                data<Arithmetic<S>>(gk),
                                grads_in<S>(out, experts)};
    run(&Table<S>::mopoe_sample_kl_backward, args, experts.rows, experts.dim * (experts.count + subsets.sums()) * 2,
        mu[0]);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mmvae_fast, MMVAE_DISPATCH_KEY, m) {
  m.impl("mopoe_sample_kl", TORCH_BOX(&mopoe_sample_kl));
  m.impl("mopoe_sample_kl_backward", TORCH_BOX(&mopoe_sample_kl_backward));
}

}  // namespace mmvae
