"""Wheels, the sdist and releases."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import bertrt
from bertrt.backends import native

ROOT = Path(__file__).parents[2]
OLD = runpy.run_path(str(ROOT / "cmake" / "old_libraries.py"))

LIBC = """
  1: 0000000000038320 117 FUNC    GLOBAL DEFAULT   16 exp@@GLIBC_2.29
  2: 0000000000013850 117 FUNC    GLOBAL DEFAULT   16 exp@GLIBC_2.2.5
  3: 0000000000099220  21 FUNC    GLOBAL DEFAULT   16 stat@@GLIBC_2.33
  4: 00000000001d4a48   8 OBJECT  GLOBAL DEFAULT   35 stdout@@GLIBC_2.2.5
  5: 0000000000000010   8 TLS     GLOBAL DEFAULT   30 _ZSt11__once_call@@GLIBCXX_3.4.11
  6: 0000000000000000   0 OBJECT  GLOBAL DEFAULT  ABS GLIBC_2.28
  7: 0000000000000000   0 FUNC    GLOBAL DEFAULT  UND wait4@GLIBC_2.2.5 (2)
  8: 0000000000081230  16 FUNC    GLOBAL DEFAULT   16 __ctype@@GLIBC_PRIVATE
  9: 0000000000081240  16 FUNC    GLOBAL DEFAULT   16 pthread_atfork@GLIBC_2.2.5
"""
MODULE = """
  1: 0000000000000000   0 FUNC    GLOBAL DEFAULT  UND exp@GLIBC_2.2.5 (5)
  2: 0000000000000000   0 FUNC    GLOBAL DEFAULT  UND PyList_New
  3: 0000000000000000   0 OBJECT  GLOBAL DEFAULT  UND _Py_NoneStruct
  4: 0000000000000000   0 NOTYPE  WEAK   DEFAULT  UND __gmon_start__
  5: 0000000000000000   0 NOTYPE  GLOBAL DEFAULT  UND stat
  6: 0000000000010230  16 FUNC    GLOBAL DEFAULT   13 PyInit__native
"""


def test_a_stand_in_has_the_newest_versions_that_are_old_enough():
    assert OLD["chosen"](LIBC) == {
        "exp": ("FUNC", "GLIBC_2.2.5"),
        "stdout": ("OBJECT", "GLIBC_2.2.5"),
        "_ZSt11__once_call": ("TLS", "GLIBCXX_3.4.11"),
    }


def test_names_that_nobody_may_have_are_found():
    assert OLD["unknown"](MODULE) == ["stat"]


@pytest.mark.skipif(
    sys.platform != "linux" or not (shutil.which("g++") and shutil.which("readelf")),
    reason="needs g++ and readelf, on Linux",
)
def test_what_is_linked_with_the_stand_ins_needs_nothing_newer(tmp_path):
    subprocess.run([sys.executable, ROOT / "cmake/old_libraries.py", "g++", tmp_path], check=True)
    (tmp_path / "a.cpp").write_text(
        "#include <cmath>\n#include <mutex>\n#include <thread>\n"
        "std::once_flag once;\n"
        "double a(double x) { std::call_once(once, [] {}); return std::exp(x); }\n"
        "void b() { std::thread([] {}).join(); }\n"
    )
    linked = tmp_path / "a.so"
    subprocess.run(
        ["g++", "-shared", "-fPIC", f"-L{tmp_path}", tmp_path / "a.cpp", "-o", linked], check=True
    )
    table = subprocess.check_output(["readelf", "--dyn-syms", "--wide", linked], text=True)
    needed = re.findall(r" UND (\S+)@(\S+)", table)
    assert "exp" in dict(needed)
    versions = [OLD["version_of"](version) for _, version in needed]
    newest = OLD["NEWEST"]
    assert all(found is None or found[1] <= newest[found[0]] for found in versions), needed


def released(tag: str, version: str, changes: str, folder: Path) -> str:
    """What .ci/release says of a tag in a project of that version and changelog."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "release", folder / ".ci")
    (folder / "bertrt").mkdir()
    (folder / "bertrt" / "version.py").write_text(f'__version__ = "{version}"\n')
    (folder / "CHANGELOG.md").write_text(changes)
    done = subprocess.run(
        [sys.executable, folder / ".ci" / "release", tag], capture_output=True, text=True
    )
    assert (done.returncode == 0) == (not done.stderr)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("tag", "changes", "said"),
    [
        ("v1.2.3", "# Changelog\n\n## 1.2.3 (2030-01-31)\n\n- All.\n", "may be released"),
        ("v1.2.4", "# Changelog\n\n## 1.2.4 (2030-01-31)\n", "expected v1.2.3"),
        ("1.2.3", "# Changelog\n\n## 1.2.3 (2030-01-31)\n", "expected v1.2.3"),
        ("v1.2.3", "# Changelog\n\n## 1.2.3 (unreleased)\n", "1.2.3 (unreleased)"),
        ("v1.2.3", "# Changelog\n\n## 1.3.0\n\n## 1.2.3 (2030-01-31)\n", 'begins with "1.3.0"'),
        ("v1.2.3", "# Changelog\n", "begins with nothing"),
    ],
)
def test_a_release_is_what_its_tag_says(tmp_path, tag, changes, said):
    assert said in released(tag, "1.2.3", changes, tmp_path)


def test_the_changelog_begins_with_this_version():
    first = re.search(
        r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert first is not None and first[1] == bertrt.__version__


def test_both_packages_are_built_of_the_same():
    requires = [
        re.search(r"^requires = .*$", (ROOT / place).read_text(encoding="utf-8"), re.MULTILINE)
        for place in ("pyproject.toml", "csrc/cuda/pyproject.toml")
    ]
    assert requires[0] is not None and requires[1] is not None
    assert requires[0][0] == requires[1][0]


@pytest.mark.parametrize("told", [{}, {"VERSION": "0.0.7"}])
def test_a_cuda_module_of_another_version_is_refused(monkeypatch, told):
    module = SimpleNamespace(__file__="/somewhere/_cuda.so", **told)
    monkeypatch.setitem(sys.modules, "bertrt._cuda", module)
    expected = rf"_cuda\.so.*{told.get('VERSION', '0.1.0')}, and bertrt .*=={bertrt.__version__}"
    with pytest.raises(bertrt.DeviceError, match=expected):
        native.load(None, device="cuda", precision="fp32", threads=1)


def test_without_the_cuda_module_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bertrt._cuda", None)
    expected = f"without bertrt._cuda .*pip install bertrt-cuda=={bertrt.__version__}"
    with pytest.raises(bertrt.DeviceError, match=expected):
        native.load(None, device="cuda", precision="fp32", threads=1)


def test_actions_are_pinned_and_may_little():
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        told = path.read_text(encoding="utf-8")
        assert re.search(r"^permissions:", told, re.MULTILINE), path.name
        for used in re.findall(r"uses: (\S+)", told):
            assert used.startswith("./") or re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", used), used
