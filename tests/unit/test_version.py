"""The version has one home."""

from pathlib import Path

import bertrt.version

ROOT = Path(__file__).parents[2]


def test_the_project_takes_its_version_from_the_package() -> None:
    told = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '\ndynamic = ["version"]\n' in told
    assert '\nversion = { attr = "bertrt.version.__version__" }\n' in told
    assert f'"{bertrt.version.__version__}"' not in told.partition("[build-system]")[2]
