"""Serve a model with Ray Serve, and ask it by its handle and over HTTP.

    pip install '.[ray]'
    python docs/examples/ray_serve.py MODEL

It prints the answers, and ends.
"""

import json
import sys
import urllib.request

from ray import serve

from bertrt.ray.serve import Predict


def main(model: str) -> None:
    app = Predict.options(num_replicas=1, ray_actor_options={"num_cpus": 1}).bind(model)
    handle = serve.run(app)

    # A result of bertrt, from any process of the cluster
    print(handle.predict.remote("a boat on the sea").result())

    request = urllib.request.Request(
        "http://127.0.0.1:8000/", json.dumps({"batch": ["a boat", "the sea"]}).encode()
    )
    with urllib.request.urlopen(request) as answer:
        print(json.load(answer))
    serve.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
