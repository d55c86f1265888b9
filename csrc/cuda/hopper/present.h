// For sources that the host's compiler takes, too.
#pragma once

namespace bertrt::cuda::hopper {

// Whether the calling thread's device runs Hopper's kernels: compute capability 9.0.
bool present();

}  // namespace bertrt::cuda::hopper
