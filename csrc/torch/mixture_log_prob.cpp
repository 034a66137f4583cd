#include "experts.h"

namespace mmvae {

// z [..., B, D] against checked experts; K is the product of the leading dimensions.
struct MixtureArgs {
  MixtureArgs(const Check& check, const Tensor& z, const Tensors& mu, const Tensors& scale, const OptTensor& mask,
              int64_t family)
      : experts(check, mu, scale, mask, "scale"), z(dense(z)) {
    check.family(family);
    const int64_t dims = z.dim();
    if (dims < 2 || z.size(dims - 2) != experts.rows || z.size(dims - 1) != experts.dim)
      check.fail("z has shape ", Check::shape(z), ", expected [..., B, D] = [..., ", experts.rows, ", ", experts.dim,
                 "] for these experts");
    if (z.scalar_type() != experts.dtype)
      check.fail("z is ", Check::dtype(z), ", expected ", Check::dtype(mu[0]), " like mu");
    if (!Check::together(z, mu[0])) check.fail("z is on another device than mu");
    for (int64_t i = 0; i < dims - 2; ++i) samples *= z.size(i);
    lead = shape_of(z);
    lead.pop_back();
  }
  Shape by_expert() const {
    Shape shape = lead;
    shape.push_back(experts.count);
    return shape;
  }

  ExpertArgs experts;
  Tensor z;
  Shape lead;  // [..., B]
  int64_t samples = 1;
};

// Also returns log q_m(z) [..., B, M], which the backward reads.
static std::tuple<Tensor, Tensor> mixture_log_prob(const Tensor& z, const Tensors& mu, const Tensors& scale,
                                                   const OptTensor& mask, int64_t family) {
  const MixtureArgs a(Check("mixture_log_prob"), z, mu, scale, mask, family);
  const ExpertArgs& experts = a.experts;
  Tensor log_prob = empty(a.lead, arithmetic(experts.dtype), z);
  Tensor densities = empty(a.by_expert(), arithmetic(experts.dtype), z);
  for_type(experts.dtype, [&](auto zero) {
    using S = decltype(zero);
    const MixtureLogProb<S> args{experts.as<S>(),
                                 static_cast<Family>(family),
                                 experts.rows,
                                 experts.dim,
                                 a.samples,
                                 data<S>(a.z),
                                 data<Arithmetic<S>>(log_prob),
                                 data<Arithmetic<S>>(densities)};
    run(&Table<S>::mixture_log_prob, args, experts.rows, experts.dim * experts.count * (a.samples + 1), z);
  });
  return {log_prob, densities};
}

// The gradient of z (of no elements unless `z_grad`), then with `expert_grads` those of mu and scale.
static Tensors mixture_log_prob_backward(const Tensor& grad, const Tensor& z, const Tensors& mu, const Tensors& scale,
                                         const OptTensor& mask, int64_t family, const Tensor& densities, bool z_grad,
                                         bool wants_experts) {
  const Check check("mixture_log_prob_backward");
  const MixtureArgs a(check, z, mu, scale, mask, family);
  const ExpertArgs& experts = a.experts;
  const ScalarType real = arithmetic(experts.dtype);
  check.shaped("grad", grad, a.lead, real, z);
  check.shaped("densities", densities, a.by_expert(), real, z);
  const Tensor g = dense(grad), q = dense(densities);
  Tensors out{empty(z_grad ? shape_of(z) : Shape{0}, experts.dtype, z)};
  Tensors of_experts;
  if (wants_experts) of_experts = expert_grads(mu);
  for_type(experts.dtype, [&](auto zero) {
    using S = decltype(zero);
    using A = Arithmetic<S>;
    const MixtureLogProbBackward<S> args{experts.as<S>(),
                                         static_cast<Family>(family),
                                         experts.rows,
                                         experts.dim,
                                         a.samples,
                                         data<S>(a.z),
                                         data<A>(q),
                                         data<A>(g),
                                         z_grad ? data<S>(out[0]) : nullptr,
                                         wants_experts,
                                         wants_experts ? grads_in<S>(of_experts, experts) : ExpertGrads<S>{}};
    run(&Table<S>::mixture_log_prob_backward, args, experts.rows, experts.dim * experts.count * (a.samples + 1), z);
  });
  for (Tensor& t : of_experts) out.push_back(std::move(t));
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(mmvae_fast, MMVAE_DISPATCH_KEY, m) {
  m.impl("mixture_log_prob", TORCH_BOX(&mixture_log_prob));
  m.impl("mixture_log_prob_backward", TORCH_BOX(&mixture_log_prob_backward));
}

}  // namespace mmvae
