// The empty Python module whose import registers the ops of a library.
#pragma once

#include <Python.h>

namespace mmvae {

// Counted up with every change of a schema or of what an argument may be: a library from before it must not be called
// by Python from after it.
constexpr int kOpsVersion = 4;

inline PyObject* ops_module(const char* name) {
  static struct PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, name, nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module != nullptr) PyModule_AddIntConstant(module, "OPS_VERSION", kOpsVersion);
  return module;
}

}  // namespace mmvae
