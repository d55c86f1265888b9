"""The examples of docs/serving-http.md run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "serving-http.md"
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example(server, command: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    assert command.startswith("curl http://localhost:8000/")
    command = command.replace("http://localhost:8000", server.url)
    done = subprocess.run(
        ["bash", "-c", command.replace("curl ", "curl --fail-with-body -sS ", 1)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert json.loads(done.stdout)


def test_there_are_some() -> None:
    assert len(COMMANDS) >= 9
    named = set(re.findall(r"8000(/[\w/]+)", " ".join(COMMANDS)))
    assert {"/v1/embeddings", "/embed", "/predict", "/rerank", "/v2/rerank"} <= named
