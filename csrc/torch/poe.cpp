// product_of_experts and poe_sample_kl: one kernel forward, one backward.
#include "experts.h"

namespace mmvae {

static void check_weights(const Check& check, const OptTensor& weights, const ExpertArgs& experts) {
  check.shaped("weights", weights, {experts.count, experts.dim}, arithmetic(experts.dtype), experts.one());
}

// weights [M, D], of the type of arithmetic
static std::tuple<Tensor, Tensor> product_of_experts(const Tensors& mu, const Tensors& logvar, const OptTensor& mask,
                                                     bool prior, const OptTensor& weights) {
  const Check check("product_of_experts");
  const ExpertArgs experts(check, mu, logvar, mask);
  check_weights(check, weights, experts);
  const OptTensor w = dense(weights);
  Tensor joint_mu = empty(experts.joint_shape(), experts.dtype, mu[0]);
  Tensor joint_logvar = empty(experts.joint_shape(), experts.dtype, mu[0]);
  for_type(experts.dtype, [&](auto zero) {
    using S = decltype(zero);
    PoE<S> args{};
    args.experts = experts.as<S>();
    args.weights = data<Arithmetic<S>>(w);
    args.prior = prior;
    args.rows = experts.rows;
    args.dim = experts.dim;
    args.mu = data<S>(joint_mu);
    args.logvar = data<S>(joint_logvar);
    run(&Table<S>::poe, args, experts.rows, experts.dim * experts.count, mu[0]);
  });
  return {joint_mu, joint_logvar};
}

// The last tensor is KL(q || q_m) [M, B], or of no elements unless asked for.
static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> poe_sample_kl(const Tensors& mu, const Tensors& logvar,
                                                                        const OptTensor& mask, bool prior,
                                                                        const std::optional<int64_t>& n_samples,
                                                                        const Tensor& seed, bool expert_kl) {
  const Check check("poe_sample_kl");
  const ExpertArgs experts(check, mu, logvar, mask);
  check.samples(n_samples);
  const Tensor key = check.seed(seed, mu[0]);
  const int64_t samples = n_samples.value_or(1);
  const ScalarType real = arithmetic(experts.dtype);
  Tensor z = empty(sampled(n_samples, experts.joint_shape()), experts.dtype, mu[0]);
  Tensor joint_mu = empty(experts.joint_shape(), experts.dtype, mu[0]);
  Tensor joint_logvar = empty(experts.joint_shape(), experts.dtype, mu[0]);
  Tensor kl = empty({experts.rows}, real, mu[0]);
  Tensor to_experts = empty({expert_kl ? experts.count : 0, experts.rows}, real, mu[0]);
  for_type(experts.dtype, [&](auto zero) {
    using S = decltype(zero);
    using A = Arithmetic<S>;
    const PoE<S> args{experts.as<S>(),
                      nullptr,
                      prior,
                      experts.rows,
                      experts.dim,
                      data<S>(joint_mu),
                      data<S>(joint_logvar),
                      samples,
                      seed_in(key),
                      data<S>(z),
                      data<A>(kl),
                      expert_kl ? data<A>(to_experts) : nullptr};
    run(&Table<S>::poe, args, experts.rows, experts.dim * (experts.count * (expert_kl ? 2 : 1) + samples), mu[0]);
  });
  return {z, joint_mu, joint_logvar, kl, to_experts};
}

static Tensors product_of_experts_backward(const OptTensor& grad_mu, const OptTensor& grad_logvar, const Tensors& mu,
                                           const Tensors& logvar, const OptTensor& mask, bool prior,
                                           const OptTensor& weights, const Tensor& joint_mu, const Tensor& joint_logvar,
                                           bool weights_grad) {
  const Check check("product_of_experts_backward");
  const ExpertArgs experts(check, mu, logvar, mask);
  check_weights(check, weights, experts);
  const Shape joint = experts.joint_shape();
  check.shaped("joint_mu", joint_mu, joint, experts.dtype, mu[0]);
  check.shaped("joint_logvar", joint_logvar, joint, experts.dtype, mu[0]);
  check.shaped("grad_mu", grad_mu, joint, experts.dtype, mu[0]);
  check.shaped("grad_logvar", grad_logvar, joint, experts.dtype, mu[0]);
  const OptTensor gm = dense(grad_mu), gl = dense(grad_logvar), w = dense(weights);
  const Tensor jm = dense(joint_mu), jl = dense(joint_logvar);
  Tensors out = expert_grads(mu);
  const int64_t blocks = (experts.rows + kWeightBlock - 1) / kWeightBlock;
  Tensor partial = mu[0];
  if (weights_grad) partial = empty({blocks, experts.count, experts.dim}, arithmetic(experts.dtype), mu[0]);
  for_type(experts.dtype, [&](auto zero) {
    using S = decltype(zero);
    PoEBackward<S> args{};
    args.experts = experts.as<S>();
    args.weights = data<Arithmetic<S>>(w);
    args.prior = prior;
    args.rows = experts.rows;
    args.dim = experts.dim;
    args.mu = data<S>(jm);
    args.logvar = data<S>(jl);
    args.grad_mu = data<S>(gm);
    args.grad_logvar = data<S>(gl);
    args.out = grads_in<S>(out, experts);
    run(&Table<S>::poe_backward, args, experts.rows, experts.dim * (experts.count + 1), mu[0]);
    if (!weights_grad) return;
    const PoEWeightsBackward<S> of_weights{args, data<Arithmetic<S>>(partial)};
    run(&Table<S>::poe_weights_backward, of_weights, blocks, kWeightBlock * experts.dim * (experts.count + 1), mu[0]);
  });
  if (weights_grad) {
    const std::vector<int64_t> over_blocks{0};
    out.push_back(torch::stable::sum(partial, torch::headeronly::IntHeaderOnlyArrayRef(over_blocks)));
  }
  return out;
}

static Tensors poe_sample_kl_backward(const OptTensor& grad_z, const OptTensor& grad_mu, const OptTensor& grad_logvar,
                                      const OptTensor& grad_kl, const OptTensor& grad_expert_kl, const Tensors& mu,
                                      const Tensors& logvar, const OptTensor& mask, bool prior, const Tensor& z,
                                      const Tensor& joint_mu, const Tensor& joint_logvar, const Tensor& seed) {
  const Check check("poe_sample_kl_backward");
  const ExpertArgs experts(check, mu, logvar, mask);
  const Tensor key = check.seed(seed, mu[0]);
  const Shape joint = experts.joint_shape();
  const ScalarType real = arithmetic(experts.dtype);
  const int64_t samples = z.dim() == 2 ? 1 : z.size(0);
  check.shaped("z", z, z.dim() == 2 ? joint : sampled(samples, joint), experts.dtype, mu[0]);
  check.shaped("joint_mu", joint_mu, joint, experts.dtype, mu[0]);
  check.shaped("joint_logvar", joint_logvar, joint, experts.dtype, mu[0]);
  check.shaped("grad_z", grad_z, shape_of(z), experts.dtype, mu[0]);
  check.shaped("grad_mu", grad_mu, joint, experts.dtype, mu[0]);
  check.shaped("grad_logvar", grad_logvar, joint, experts.dtype, mu[0]);
  check.shaped("grad_kl", grad_kl, {experts.rows}, real, mu[0]);
  check.shaped("grad_expert_kl", grad_expert_kl, {experts.count, experts.rows}, real, mu[0]);
  const OptTensor gz = dense(grad_z), gm = dense(grad_mu), gl = dense(grad_logvar), gk = dense(grad_kl),
                  ge = dense(grad_expert_kl);
  const Tensor sample = dense(z), jm = dense(joint_mu), jl = dense(joint_logvar);
  Tensors out = expert_grads(mu);
  for_type(experts.dtype, [&](auto zero) {
    using S = decltype(zero);
    using A = Arithmetic<S>;
    const PoEBackward<S> args{experts.as<S>(), nullptr,      prior,           experts.rows, experts.dim,
                              data<S>(jm),     data<S>(jl),  data<S>(gm),     data<S>(gl),  grads_in<S>(out, experts),
                              samples,         seed_in(key), data<S>(sample), data<S>(gz),  data<A>(gk),
                              data<A>(ge)};
    run(&Table<S>::poe_backward, args, experts.rows, experts.dim * (experts.count + samples + 1), mu[0]);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mmvae_fast, MMVAE_DISPATCH_KEY, m) {
  m.impl("product_of_experts", TORCH_BOX(&product_of_experts));
  m.impl("product_of_experts_backward", TORCH_BOX(&product_of_experts_backward));
  m.impl("poe_sample_kl", TORCH_BOX(&poe_sample_kl));
  m.impl("poe_sample_kl_backward", TORCH_BOX(&poe_sample_kl_backward));
}

}  // namespace mmvae
