// The kernels of avx_vnni/ as CPUs with AVX512-VNNI and without AVX-VNNI run them: the same
// instructions in another encoding. So they are tested where AVX-VNNI is missing.
#define BERTRT_CPU_NAMESPACE avx_vnni_evex
#include "cpu/avx_vnni/kernels.inl.h"
