"""Changes csrc/ in one small place at a time and asks whether any test notices.

    python tests/mutation/mutate.py --count 100 --seed 1 ['csrc/runtime/*.cpp' ...]

A mutant is one site of one file: a comparison or a constant off by one, a condition negated, a sum
that is a difference, a statement left out. All of a run's mutants are compiled into one copy of the
sources (build/mutation-<seed>; the checkout stays as it is), each behind a number that is read from
the environment when the module is loaded: so a mutant costs its tests and no build. What does
not compile is left out again: constants of types and templates, and immediates of instructions.

The tests that know a mutant's file run first, then, for who survives them, the rest of those that
concern csrc/, all on one instruction set. Each mutant is a line of build/mutation-<seed>.jsonl:
file, line, before, after, and whether it was "killed" (and by which test), ran into the
"time-out", or "survived". One that survives is one of two things: a test that is missing, or a
change without a meaning (speed alone, a bound that is never met). Which, someone has to say.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy  # noqa: F401  a forked child need not import them
import pytest

REPO = Path(__file__).resolve().parents[2]

# For the tests of one mutant. They take seconds on an idle machine, and little memory.
SECONDS = 150
BYTES = 8 << 30

KERNELS = [f"tests/kernels/test_{name}.py" for name in ("kernels", "padding", "distances")]
ENGINE = [f"tests/kernels/test_{name}.py" for name in ("padding", "native_engine", "distances")]
AFTER = [
    *sorted(str(path.relative_to(REPO)) for path in REPO.glob("tests/kernels/test_*.py")),
    *("tests/unit/test_backends.py", "tests/unit/test_engine.py"),
]
# What looks at machine code, at speed, at cores, or at memory for seconds.
UNFIT = "not spills and not peak and not memory_stays and not woken"

# Files, the instruction set that runs them, and the tests that know them. The first match counts.
ROOMS = [
    ("csrc/cpu/generic/vnni.inl.h", "avx512_vnni", KERNELS),
    ("csrc/cpu/generic/*.inl.h", "avx512", KERNELS),
    ("csrc/cpu/avx512/vec.h", "avx512", KERNELS),
    ("csrc/cpu/avx512_vnni/*.cpp", "avx512_vnni", KERNELS),
    ("csrc/cpu/avx512_bf16/*.cpp", "avx512_bf16", KERNELS),
    ("csrc/cpu/avx2/vec.h", "avx2", KERNELS),
    ("csrc/cpu/avx_vnni/*.inl.h", "avx_vnni", KERNELS),
    ("csrc/cpu/portable/vec.h", "portable", KERNELS),
    ("csrc/cpu/amx/*.inl.h", "amx_emulated", ["tests/kernels/test_amx.py", *KERNELS]),
    ("csrc/cpu/*.cpp", "avx512_vnni", KERNELS),
    ("csrc/cpu/*.h", "avx512_vnni", KERNELS),
    ("csrc/reference/*.cpp", "avx512_vnni", KERNELS),
    ("csrc/core/*.h", "avx512_vnni", ENGINE),
    ("csrc/plan/*.cpp", "avx512_vnni", ENGINE),
    ("csrc/runtime/*", "avx512_vnni", ENGINE),
    ("csrc/bindings/*.cpp", "avx512_vnni", ENGINE),
]
LEFT_OUT = re.compile(r"csrc/(cpu/peaks|cpu/generic/peak|bindings/(cuda|machine|module))")

# Included before everything else: whether mutant n is the one.
HEADER = """
#pragma once
#include <algorithm>
extern "C" __attribute__((visibility("hidden"))) const int bertrt_mutant;
#define M(n) (bertrt_mutant == (n))
#define SIGN(n) (1 - 2 * M(n))
template <class T> static inline T mutant_min(int n, T a, T b) {
  using std::max, std::min;
  return M(n) ? max(a, b) : min(a, b);
}
template <class T> static inline T mutant_max(int n, T a, T b) {
  using std::max, std::min;
  return M(n) ? min(a, b) : max(a, b);
}
"""
SOURCE = """
#include <cstdlib>
static int chosen() {
  const char* number = std::getenv("BERTRT_MUTANT");
  return number ? std::atoi(number) : 0;
}
extern "C" const int bertrt_mutant;
const int bertrt_mutant = chosen();
"""

# The project's format puts spaces around a binary operator and nowhere else. What is shown, and
# what stands in the source for it, where {n} is the mutant's number.
OPERATORS = {
    " < ": (" <= ", " < M({n}) + "),
    " <= ": (" < ", " <= -M({n}) + "),
    " > ": (" >= ", " > -M({n}) + "),
    " >= ": (" > ", " >= M({n}) + "),
    " + ": (" - ", " + SIGN({n}) * "),
    " - ": (" + ", " - SIGN({n}) * "),
    " * ": (" * 2 * ", " * (1 + M({n})) * "),
    " / ": (" / 2 / ", " / (1 + M({n})) / "),
    " && ": (" && false && ", " && !M({n}) && "),
    " || ": (" || true || ", " || M({n}) || "),
    "true": ("false", "!M({n})"),
    "false": ("true", "bool(M({n}))"),
}
OPERATOR = re.compile("|".join(re.escape(each) for each in OPERATORS))
EXTREME = re.compile(r"(?<![\w.>])(?:std::)?(min|max)((?:<\w+>)?)\((?=[^)])")
INTEGER = re.compile(r"(?<![\w.])(\d+)(?![\w.])")
FLOAT = re.compile(r"(?<![\w.])\d+\.\d*(?:e[+-]?\d+)?f?\b")
CONDITION = re.compile(r"\bif \((?!constexpr)(.+)\)(?= |$)")
STATEMENT = re.compile(
    r"^ +(?!throw|using|static|const|return [^;]|case|default|else|\})[\w+*-].*;$"
)
DECLARATION = re.compile(r"^ +(?:[\w:]+(?:<.*>)?[&*]? )+[\w\[\]]+(?:;| = |\{|\()")


@dataclass
class Mutant:
    file: str
    line: int
    before: str
    after: str
    # (begin, end, text) within the line, with {n} for the number
    edits: list[tuple[int, int, str]] = field(repr=False)


def code_of(text: str) -> list[str]:
    """The lines, with comments, strings, preprocessor lines and error messages blanked out."""

    def blank(found: re.Match[str]) -> str:
        return re.sub(r"[^\n]", "\0", found[0])

    for pattern, flags in (
        (r"//[^\n]*|/\*.*?\*/", re.S),
        (r'R"\(.*?\)"', re.S),
        (r'"(?:\\.|[^"\\\n])*"', 0),
        (r"^\s*#.*$", re.M),
        (r"\b(?:throw|fail\(|static_assert|template|constexpr|__builtin_prefetch)\b[^;{]*;?", 0),
    ):
        text = re.sub(pattern, blank, text, flags=flags)
    return text.split("\n")


def mutants_of(file: str) -> list[Mutant]:
    text = (REPO / file).read_text()
    found = []
    for number, (line, code) in enumerate(zip(text.split("\n"), code_of(text), strict=True), 1):

        def add(begin: int, end: int, shown: str, *edits: tuple[int, int, str]) -> None:
            after = (line[:begin] + shown + line[end:]).strip()  # noqa: B023
            found.append(Mutant(file, number, line.strip(), after, list(edits)))  # noqa: B023

        for each in OPERATOR.finditer(code):
            shown, put = OPERATORS[each[0]]
            add(*each.span(), shown, (*each.span(), put))
        for each in EXTREME.finditer(code):
            other = "max" if each[1] == "min" else "min"
            put = f"mutant_{each[1]}{each[2]}({{n}}, "
            add(*each.span(), f"{other}{each[2]}(", (*each.span(), put))
        if "_mm" not in code:  # immediates
            for each in INTEGER.finditer(code):
                for sign in "+-":
                    shown = str(int(each[0]) + (1 if sign == "+" else -1))
                    add(*each.span(), shown, (*each.span(), f"({each[0]} {sign} M({{n}}))"))
        for each in FLOAT.finditer(code):
            more, put = " * 1.001f", " * (1.0f + 0.001f * M({n}))"
            if float(each[0].rstrip("f")) == 0:
                more, put = " + 1.0f", " + M({n})"
            add(*each.span(), f"({each[0]}{more})", (*each.span(), f"({each[0]}{put})"))
        for each in CONDITION.finditer(code):
            begin, end = each.span(1)
            if each[1].count("(") == each[1].count(")"):
                edits = (begin, begin, "M({n}) != bool("), (end, end, ")")
                add(begin, end, f"!({line[begin:end]})", *edits)
        if STATEMENT.match(code) and not DECLARATION.match(code):
            begin = len(code) - len(code.lstrip())
            add(begin, len(line), ";", (begin, begin, "if (!M({n})) "))
    return found


def room_of(file: str) -> tuple[str, list[str]] | None:
    for pattern, isa, tests in ROOMS:
        if Path(file).match(pattern) and not LEFT_OUT.match(file):
            return isa, tests
    return None


class Tree:
    """A copy of the checkout whose module holds all mutants; `mutants` by number."""

    def __init__(self, root: Path, mutants: list[Mutant]) -> None:
        self.root, self.build = root, root / "build"
        self.mutants = dict(enumerate(mutants, 1))
        self.written: set[str] = set()
        command = ["git", "ls-files", "-co", "--exclude-standard"]
        for name in subprocess.check_output(command, cwd=REPO, text=True).splitlines():
            if (REPO / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPO / name, root / name)
        if not (root / "bertrt" / "export").exists():
            (root / "bertrt" / "export").symlink_to("../export")
        (root / "mutant.h").write_text(HEADER)
        with open(root / "csrc" / "cpu" / "isa.cpp", "a") as file:
            file.write(SOURCE)
        # One build of all, and tests of small things: compiling counts for more than running.
        options = root / "cmake" / "isa.cmake"
        options.write_text(options.read_text().replace("-O3", "-O1"))
        python = ["-DPython_EXECUTABLE=" + sys.executable]
        if pybind11 := subprocess.run(
            [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True
        ).stdout.strip():
            python.append("-Dpybind11_DIR=" + pybind11)
        flags = f"-O1 -DNDEBUG -Werror=vla -fmax-errors=0 -include {root / 'mutant.h'}"
        self.run(
            *("cmake", "-S", root, "-B", self.build, "-G", "Ninja", *python),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={root / 'bertrt'}",
            f"-DCMAKE_CXX_FLAGS_RELEASE={flags}",
            "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF",
        )
        while not self.compiles():
            pass

    def run(self, *command: object) -> str:
        done = subprocess.run([str(each) for each in command], capture_output=True, text=True)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    def compiles(self) -> bool:
        """Whether it builds with the mutants that are left; takes out those that fail."""
        for file in {m.file for m in self.mutants.values()} | set(self.written):
            self.write(file)
        output = self.run("cmake", "--build", self.build, "--target", "_native", "--", "-k", "0")
        if not output:
            return True
        named = set(re.findall(r"(csrc/[\w/.]+):(\d+):", output))
        broken = [n for n, m in self.mutants.items() if (m.file, str(m.line)) in named]
        if not broken:
            sys.exit(f"the mutants do not compile, and none is named:\n{output[-4000:]}")
        print(f"{len(broken)} do not compile", flush=True)
        for number in broken:
            del self.mutants[number]
        return False

    def write(self, file: str) -> None:
        lines = (REPO / file).read_text().split("\n")
        edits = defaultdict(list)
        for number, mutant in self.mutants.items():
            if mutant.file == file:
                for begin, end, put in mutant.edits:
                    edits[mutant.line].append((begin, end, put.replace("{n}", str(number))))
        for line, of in edits.items():
            text = lines[line - 1]
            for begin, end, put in sorted(of, reverse=True):
                text = text[:begin] + put + text[end:]
            lines[line - 1] = text
        text = "\n".join(lines) + (SOURCE if file == "csrc/cpu/isa.cpp" else "")
        if (self.root / file).read_text() != text:
            (self.root / file).write_text(text)
        self.written = self.written | {file}

    def test(self, number: int, isa: str, tests: list[str]) -> tuple[str, str]:
        """Whether a test fails with this mutant, and which."""
        with tempfile.TemporaryFile("w+") as output:
            child = os.fork()
            if child == 0:
                os.setsid()  # so that a test's own children can be ended with it
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                os.environ |= {"BERTRT_MUTANT": str(number), "BERTRT_ISA": isa}
                sys.path.insert(0, str(self.root))
                os.chdir(self.root)
                import bertrt

                assert Path(bertrt.__file__).is_relative_to(self.root), bertrt.__file__
                options = ["-x", "-rfE", "--tb=no", "-p", "no:cacheprovider", "-k", UNFIT]
                code = pytest.main([*options, *tests])
                sys.stdout.flush()
                os._exit(int(code))
            end = time.monotonic() + SECONDS
            while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
                if time.monotonic() > end:
                    os.killpg(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    return "time-out", ""
                time.sleep(0.05)
            code = os.waitstatus_to_exitcode(done[1])
            if code == 0:
                return "survived", ""
            output.seek(0)
            text = output.read()
            failed = re.search(r"^(?:FAILED|ERROR) (\S+)", text, re.M)
            return "killed", failed[1] if failed else f"exit {code}"

    def judge(self, number: int, log: Path) -> None:
        """Writes down what becomes of a mutant."""
        begin, mutant = time.monotonic(), self.mutants[number]
        isa, tests = room_of(mutant.file)  # type: ignore[misc]
        result, by = self.test(number, isa, tests)
        if result == "survived":
            result, by = self.test(number, isa, [each for each in AFTER if each not in tests])
        row = asdict(mutant) | {"result": result, "by": by, "isa": isa}
        del row["edits"]
        row["seconds"] = round(time.monotonic() - begin, 1)
        with open(log, "a") as file:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100, help="mutants to try (100)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (1)")
    parser.add_argument("files", nargs="*", help="patterns of files; all of csrc's by default")
    arguments = parser.parse_args()
    patterns = arguments.files or ["csrc/**/*.*"]
    paths = {path for pattern in patterns for path in REPO.glob(pattern) if path.is_file()}
    files = sorted(str(path.relative_to(REPO)) for path in paths)
    mutants = [mutant for file in files if room_of(file) for mutant in mutants_of(file)]
    random.Random(arguments.seed).shuffle(mutants)
    print(
        f"{len(mutants)} sites, {min(arguments.count, len(mutants))} of them are tried", flush=True
    )
    root = REPO / "build" / f"mutation-{arguments.seed}"
    tree = Tree(root, mutants[: arguments.count])
    for isa in sorted({room_of(m.file)[0] for m in tree.mutants.values()}):  # type: ignore[index]
        if (found := tree.test(0, isa, AFTER))[0] != "survived":
            sys.exit(f"the tests fail without a mutant on {isa}: {' '.join(found)}")
    log = Path(f"{root}.jsonl")
    log.write_text("")
    workers = os.cpu_count() or 1
    for worker in range(workers):
        if os.fork() == 0:
            for number in sorted(tree.mutants)[worker::workers]:
                tree.judge(number, log)
            os._exit(0)
    for _ in range(workers):
        os.wait()
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in sorted(rows, key=lambda row: (row["file"], row["line"])):
        if row["result"] == "survived":
            print("{file}:{line}: {before}\n    {after}".format(**row))
    results = Counter(row["result"] for row in rows)
    print(", ".join(f"{count} {result}" for result, count in results.most_common()))


if __name__ == "__main__":
    main()
