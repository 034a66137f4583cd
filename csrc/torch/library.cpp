// Schemas of every op, and the empty Python module whose import registers them.
//
// Experts are lists of [B, D] or a list of one stacked [M, B, D]. Their backward ops return one gradient for each
// tensor of mu, then one for each of logvar.
//
// family: 0 normal, 1 laplace, 2 bernoulli, 3 categorical. prior (of subsets): 0 none, 1 full, 2 all. Outputs and
// gradients nobody asked for come back with no elements, or are left out of a list.
#include "module.h"
#include "stable.h"

STABLE_TORCH_LIBRARY(mmvae_fast, m) {
  m.def("reparameterize(Tensor mu, Tensor logvar, Tensor seed, int? n_samples, int family) -> Tensor");
  m.def(
      "reparameterize_backward(Tensor grad_z, Tensor z, Tensor mu, Tensor logvar, Tensor seed, int family) "
      "-> (Tensor, Tensor)");
  m.def("gaussian_kl(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar) -> Tensor");
  m.def(
      "gaussian_kl_backward(Tensor grad_kl, Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, "
      "bool prior_grads) -> Tensor[]");
  m.def("laplace_kl(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar) -> Tensor");
  m.def(
      "laplace_kl_backward(Tensor grad_kl, Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, "
      "bool prior_grads) -> Tensor[]");
  m.def(
      "product_of_experts(Tensor[] mu, Tensor[] logvar, Tensor? mask, bool prior, Tensor? weights) "
      "-> (Tensor, Tensor)");
  m.def(
      "product_of_experts_backward(Tensor? grad_mu, Tensor? grad_logvar, Tensor[] mu, Tensor[] logvar, Tensor? mask, "
      "bool prior, Tensor? weights, Tensor joint_mu, Tensor joint_logvar, bool weights_grad) -> Tensor[]");
  m.def(
      "poe_sample_kl(Tensor[] mu, Tensor[] logvar, Tensor? mask, bool prior, int? n_samples, Tensor seed, "
      "bool expert_kl) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "poe_sample_kl_backward(Tensor? grad_z, Tensor? grad_mu, Tensor? grad_logvar, Tensor? grad_kl, "
      "Tensor? grad_expert_kl, Tensor[] mu, Tensor[] logvar, Tensor? mask, bool prior, Tensor z, Tensor joint_mu, "
      "Tensor joint_logvar, Tensor seed) -> Tensor[]");
  m.def(
      "subset_posteriors(Tensor[] mu, Tensor[] logvar, Tensor? mask, int[]? subsets, int prior) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "subset_posteriors_backward(Tensor? grad_mu, Tensor? grad_logvar, Tensor? grad_kl, Tensor[] mu, "
      "Tensor[] logvar, Tensor? mask, int[]? subsets, int prior) -> Tensor[]");
  m.def(
      "mopoe_sample_kl(Tensor[] mu, Tensor[] logvar, Tensor? mask, int[]? subsets, int prior, Tensor seed) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "mopoe_sample_kl_backward(Tensor? grad_z, Tensor? grad_kl, Tensor[] mu, Tensor[] logvar, Tensor? mask, "
      "int[]? subsets, int prior, Tensor z, Tensor subset, Tensor seed) -> Tensor[]");
  m.def("mixture_log_prob(Tensor z, Tensor[] mu, Tensor[] scale, Tensor? mask, int family) -> (Tensor, Tensor)");
  m.def(
      "mixture_log_prob_backward(Tensor grad, Tensor z, Tensor[] mu, Tensor[] scale, Tensor? mask, int family, "
      "Tensor densities, bool z_grad, bool expert_grads) -> Tensor[]");
  m.def(
      "log_likelihood(Tensor x, Tensor params, Tensor? scale, float scale_value, int family, int event_dims, "
      "Tensor? mask) -> (Tensor, Tensor)");
  m.def(
      "log_likelihood_backward(Tensor grad, Tensor x, Tensor params, Tensor? scale, float scale_value, int family, "
      "int event_dims, Tensor? mask, Tensor log_p, bool params_grad, bool scale_grad) -> (Tensor, Tensor)");
  m.def("flush_denormals(Tensor on) -> Tensor");
}

PyMODINIT_FUNC PyInit__C(void) { return mmvae::ops_module("_C"); }
