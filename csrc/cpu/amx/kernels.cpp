// The kernels of kernels.inl.h on the instructions themselves.
#include "cpu/amx/tiles.h"

#define BERTRT_CPU_NAMESPACE amx
#include "cpu/amx/kernels.inl.h"
