// Words every kernel file needs: host+device functions, forced inlining, the namespace of this compilation.
//
// CPU bodies are compiled once per instruction set. Everything they include has internal linkage or lives in the
// namespace of its instruction set (MMVAE_ISA): a function shared by name would let the linker keep the AVX-512 copy
// and run it on a machine without AVX-512.
#pragma once

#ifdef __CUDACC__
#define MMVAE_HD __host__ __device__ __forceinline__
#else
#define MMVAE_HD inline __attribute__((always_inline))
#endif

#define MMVAE_INLINE inline __attribute__((always_inline))
#define MMVAE_NOINLINE __attribute__((noinline))

#ifndef MMVAE_ISA
#define MMVAE_ISA generic
#endif
