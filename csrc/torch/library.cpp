// Schemas of every op, and the empty Python module whose import registers them.
//
// Experts are lists of [B, D] or a list of one stacked [M, B, D]. Their backward ops return one gradient for each
// tensor of mu, then one for each of logvar.
#include <Python.h>

#include "stable.h"

STABLE_TORCH_LIBRARY(mmvae_fast, m) {
  m.def("reparameterize(Tensor mu, Tensor logvar, Tensor seed, int? n_samples) -> Tensor");
  m.def("reparameterize_backward(Tensor grad_z, Tensor z, Tensor mu, Tensor logvar, Tensor seed) -> (Tensor, Tensor)");
  m.def("gaussian_kl(Tensor mu, Tensor logvar) -> Tensor");
  m.def("gaussian_kl_backward(Tensor grad_kl, Tensor mu, Tensor logvar) -> (Tensor, Tensor)");
  m.def("product_of_experts(Tensor[] mu, Tensor[] logvar, Tensor? mask, bool prior) -> (Tensor, Tensor)");
  m.def(
      "product_of_experts_backward(Tensor? grad_mu, Tensor? grad_logvar, Tensor[] mu, Tensor[] logvar, Tensor? mask, "
      "Tensor joint_mu, Tensor joint_logvar) -> Tensor[]");
  m.def(
      "poe_sample_kl(Tensor[] mu, Tensor[] logvar, Tensor? mask, bool prior, int? n_samples, Tensor seed) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "poe_sample_kl_backward(Tensor? grad_z, Tensor? grad_mu, Tensor? grad_logvar, Tensor? grad_kl, Tensor[] mu, "
      "Tensor[] logvar, Tensor? mask, Tensor z, Tensor joint_mu, Tensor joint_logvar, Tensor seed) -> Tensor[]");
  m.def(
      "mopoe_sample_kl(Tensor[] mu, Tensor[] logvar, Tensor? mask, int[]? subsets, int prior, Tensor seed) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "mopoe_sample_kl_backward(Tensor? grad_z, Tensor? grad_kl, Tensor[] mu, Tensor[] logvar, Tensor? mask, "
      "int[]? subsets, int prior, Tensor z, Tensor subset, Tensor seed) -> Tensor[]");
}

PyMODINIT_FUNC PyInit__C(void) {
  static struct PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* self = PyModule_Create(&module);
  // Counted up with every change of a schema: a library from before it must not be called by Python from after it.
  if (self != nullptr) PyModule_AddIntConstant(self, "OPS_VERSION", 1);
  return self;
}
