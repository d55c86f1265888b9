// The kernels of cpu/generic/, compiled for this instruction set.
//
// Only intrinsics and our own headers are included here: an inline function of the standard library
// compiled with this folder's flags could be the copy that the linker keeps for everyone.
#include "cpu/kernel_table.h"
#include "cpu/neon/vec.h"

#define BERTRT_CPU_NAMESPACE neon
#include "cpu/generic/kernels.inl.h"
