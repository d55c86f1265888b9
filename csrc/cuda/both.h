// For functions that kernels and the host both call.
#pragma once

#ifdef __CUDACC__
#define BERTRT_BOTH __host__ __device__
#else
#define BERTRT_BOTH
#endif
