// _C_cuda: the ops of library.cpp for CUDA tensors. The op files beside this one register themselves.
#include "module.h"

PyMODINIT_FUNC PyInit__C_cuda(void) { return mmvae::ops_module("_C_cuda"); }
