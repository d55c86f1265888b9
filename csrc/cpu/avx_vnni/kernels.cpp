// The kernels of kernels.inl.h as CPUs with AVX-VNNI run them.
#define BERTRT_CPU_NAMESPACE avx_vnni
#include "cpu/avx_vnni/kernels.inl.h"
