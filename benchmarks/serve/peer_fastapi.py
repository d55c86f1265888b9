"""sentence-transformers behind FastAPI: `python peer_fastapi.py MODEL PORT`."""

from __future__ import annotations

import base64
import sys
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], device="cpu")
app = FastAPI()


class Request(BaseModel):
    """A text, and what the other servers are sent beside it."""

    input: str
    model: str = ""
    encoding_format: str = "base64"


# In one of FastAPI's threads, so that requests are tokenized and answered beside each other.
@app.post("/v1/embeddings")
def embed(request: Request) -> dict[str, Any]:
    """One text's vector in OpenAI's form."""
    vector = model.encode(request.input, show_progress_bar=False, normalize_embeddings=True)
    inside = base64.b64encode(np.asarray(vector, np.float32).tobytes()).decode()
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": inside}],
        "model": request.model,
    }


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
