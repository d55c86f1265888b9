// The kernels of amx/ on tile instructions written out, for tests where there is no AMX.
#include "cpu/amx_emulated/tiles.h"

#define BERTRT_CPU_NAMESPACE amx_emulated
#include "cpu/amx/kernels.inl.h"
