"""Embed a file of texts, one a line, with Ray Data.

    pip install '.[ray]'
    python docs/examples/ray_data.py MODEL texts.txt vectors

The folder `vectors` then has Parquet files with the columns `text`, `vector`, `truncated`, `error`.
"""

import sys

import ray

from bertrt.ray.data import Predict


def main(model: str, texts: str, out: str) -> None:
    dataset = ray.data.read_text(texts).map_batches(
        Predict,
        fn_constructor_kwargs={"path": model, "columns": "text", "on_error": "return"},
        batch_format="pyarrow",
        batch_size=1024,
        num_cpus=1,  # an engine's threads
        compute=ray.data.ActorPoolStrategy(size=1),  # so many engines
    )
    dataset.write_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
