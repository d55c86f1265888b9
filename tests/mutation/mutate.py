"""Changes the C++ sources in one small place at a time and asks whether any test notices.

    python tests/mutation/mutate.py --count 100 --seed 1

Everything happens in a copy of the checkout, build/mutation-<seed>: the sources stay as they are, and
runs with other seeds may go beside this one. A mutant is one site of one file: an operator turned
into its neighbour, a constant moved, a condition negated, a statement left out. Only the objects
that hold it are compiled again; of a header that all instruction sets share, that of one of them.
The tests of the file's room run first, the rest of those that concern csrc/ for those who survive
them. Each mutant is a line of build/mutation-<seed>/mutants.jsonl: file, line, before, after, and
whether it was "killed" (and by which test), a "time-out", a "build error", or "survived".

A mutant that survives is one of two things: a test that is missing, or a change without a meaning
(speed alone, a bound that is never met). Which of them it is, someone has to say.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]

# The tests below take seconds and little memory.
SECONDS = 150
BYTES = 8 << 30

KERNELS = [f"tests/kernels/test_{name}.py" for name in ("kernels", "distances", "padding")]
ENGINE = [f"tests/kernels/test_{name}.py" for name in ("native_engine", "padding", "distances")]
AFTER = ["tests/kernels", "tests/unit/test_backends.py", "tests/unit/test_engine.py"]

# Which files, on which instruction set, by which tests first. The first that matches counts.
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
    ("csrc/reference/*.cpp", "portable", KERNELS),
    ("csrc/core/*.h", "avx512_vnni", ENGINE),
    ("csrc/plan/*.cpp", "avx512_vnni", ENGINE),
    ("csrc/runtime/*", "avx512_vnni", ENGINE),
    ("csrc/bindings/*.cpp", "avx512_vnni", ENGINE),
]
# What only reports, measures or is a test's own.
LEFT_OUT = re.compile(r"csrc/(cpu/peaks|cpu/generic/peak|bindings/(cuda|machine|module))")

# The project's format puts spaces around a binary operator and nowhere else.
SWAPS = {
    " < ": [" <= "],
    " <= ": [" < "],
    " > ": [" >= "],
    " >= ": [" > "],
    " == ": [" != "],
    " != ": [" == "],
    " + ": [" - "],
    " - ": [" + "],
    " * ": [" / "],
    " / ": [" * "],
    " % ": [" / "],
    " += ": [" -= "],
    " && ": [" || "],
    " || ": [" && "],
    "std::min": ["std::max"],
    "std::max": ["std::min"],
    " min(": [" max("],
    " max(": [" min("],
    "true": ["false"],
    "false": ["true"],
}
SWAP = re.compile("|".join(re.escape(each) for each in sorted(SWAPS, key=len, reverse=True)))
INTEGER = re.compile(r"(?<![\w.])(\d+)(?![\w.])")
FLOAT = re.compile(r"(?<![\w.])\d+\.\d*(?:e[+-]?\d+)?f?\b")
CONDITION = re.compile(r"\bif \((?!constexpr)(.+)\)(?= |$)")
STATEMENT = re.compile(r"^\s+(?!return [^;]|throw|using|static|const |constexpr|case|default|\})[\w+-].*;$")
DECLARATION = re.compile(r"^\s+(?:[\w:]+(?:<.*>)?[&*]? )+[\w\[\]]+(?:;| = |\{|\()")


@dataclass
class Mutant:
    file: str
    line: int
    before: str
    after: str


def code_of(text: str) -> list[str]:
    """The lines, with comments, strings, preprocessor lines and error messages blanked out."""
    blank = lambda found: re.sub(r"[^\n]", "\0", found[0])  # noqa: E731
    text = re.sub(r"//[^\n]*|/\*.*?\*/", blank, text, flags=re.S)
    text = re.sub(r'R"\(.*?\)"', blank, text, flags=re.S)
    text = re.sub(r'"(?:\\.|[^"\\\n])*"', blank, text)
    text = re.sub(r"^\s*#.*$", blank, text, flags=re.M)
    text = re.sub(r"\b(?:throw|fail\(|static_assert|template|__builtin_prefetch)[^;{]*;?", blank, text)
    return text.split("\n")


def mutants_of(file: str) -> list[Mutant]:
    text = (REPO / file).read_text()
    found = []
    for number, (line, code) in enumerate(zip(text.split("\n"), code_of(text), strict=True), 1):

        def add(begin: int, end: int, after: str, line: str = line, number: int = number) -> None:
            changed = line[:begin] + after + line[end:]
            found.append(Mutant(file, number, line.strip(), changed.strip()))

        for each in SWAP.finditer(code):
            for after in SWAPS[each[0]]:
                add(*each.span(), after)
        for each in INTEGER.finditer(code):
            add(*each.span(), str(int(each[0]) + 1))
            if int(each[0]) > 0:
                add(*each.span(), str(int(each[0]) - 1))
        for each in FLOAT.finditer(code):
            add(*each.span(), f"({each[0]} * 1.001f)" if float(each[0].rstrip("f")) else "1.0f")
        for each in CONDITION.finditer(code):
            if each[1].count("(") == each[1].count(")"):
                add(each.start(1), each.end(1), f"!({line[each.start(1) : each.end(1)]})")
        if STATEMENT.match(code) and not DECLARATION.match(code):
            add(0, len(line), ";")
    return found


def run(command: list[str] | str, **more: object) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, **more)  # type: ignore[call-overload]


class Tree:
    """A copy of the checkout with a build of its own, in which one file at a time is another."""

    def __init__(self, root: Path) -> None:
        self.root, self.build = root, root / "build"
        listed = run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPO, check=True).stdout
        for name in listed.splitlines():
            source, target = REPO / name, root / name
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        link = root / "bertrt" / "export"
        if not link.exists():
            link.symlink_to("../export")
        pybind11 = run([sys.executable, "-m", "pybind11", "--cmakedir"], check=True).stdout.strip()
        configure = [
            *("cmake", "-S", root, "-B", self.build, "-G", "Ninja"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={root / 'bertrt'}",
            "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
            # Linking takes as long as compiling otherwise.
            "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF",
        ]
        for command in (configure, ["cmake", "--build", self.build]):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        self.commands = {
            each["output"]: each["command"]
            for each in json.loads((self.build / "compile_commands.json").read_text())
        }
        self.includes: dict[str, set[str]] = {}
        for line in self.ninja("-t", "deps").splitlines():
            if line.startswith("    "):
                self.includes[target].add(os.path.realpath(line.strip()))
            elif line:
                target = line.split(":")[0]
                self.includes[target] = set()
        commands = self.ninja("-t", "commands", "_native").splitlines()
        self.link = [each for each in commands if " -c " not in each]

    def ninja(self, *arguments: str) -> str:
        return run(["ninja", "-C", str(self.build), "--quiet", *arguments], check=True).stdout

    def objects(self, file: str, isa: str) -> list[str]:
        holds = [o for o, of in self.includes.items() if os.path.realpath(self.root / file) in of]
        own = [o for o in holds if "/csrc/cpu/" not in o or "kernels.cpp" not in o]
        return own + [o for o in holds if f"/csrc/cpu/{isa}/kernels.cpp" in o]

    def test(self, tests: list[str], isa: str) -> tuple[str, str]:
        """Whether a test fails, and which."""
        python_path = [str(self.root), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {
            **os.environ,
            "BERTRT_ISA": isa,
            "PYTHONPATH": os.pathsep.join(python_path),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        options = ["-x", "-rfE", "--tb=no", "-p", "no:cacheprovider"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that a test's children end with it
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES)),
        )
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return "time-out", ""
        if process.returncode == 0:
            return "survived", ""
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.M)
        return "killed", failed[1] if failed else f"exit {process.returncode}"

    def judge(self, mutant: Mutant, isa: str, tests: list[str]) -> tuple[str, str]:
        path = self.root / mutant.file
        text = path.read_text()
        lines = text.split("\n")
        line = lines[mutant.line - 1]
        assert line.strip() == mutant.before, "the copy is not what mutants were drawn from"
        lines[mutant.line - 1] = line.replace(mutant.before, mutant.after)
        objects = [self.build / each for each in self.objects(mutant.file, isa)]
        assert objects, f"no object holds {mutant.file} on {isa}"
        for each in objects:
            shutil.copy2(each, f"{each}.kept")
        path.write_text("\n".join(lines))
        try:
            steps = [self.commands[str(each.relative_to(self.build))] for each in objects]
            for command in [*steps, *self.link]:
                if run(command, shell=True, cwd=self.build).returncode:
                    return "build error", ""
            result = self.test(tests, isa)
            return result if result[0] != "survived" else self.test(AFTER, isa)
        finally:
            path.write_text(text)
            for each in objects:
                shutil.move(f"{each}.kept", each)


def room_of(file: str) -> tuple[str, list[str]] | None:
    for pattern, isa, tests in ROOMS:
        if Path(file).match(pattern) and not LEFT_OUT.match(file):
            return isa, tests
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=50, help="mutants to try (50)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (1)")
    parser.add_argument("files", nargs="*", help="patterns of files; all of csrc's by default")
    arguments = parser.parse_args()
    files = [str(path.relative_to(REPO)) for path in sorted((REPO / "csrc").rglob("*.*"))]
    chosen = arguments.files or ["csrc/**/*.*"]
    known = {str(p.relative_to(REPO)) for pattern in chosen for p in REPO.glob(pattern)}
    mutants = [m for file in files if file in known and room_of(file) for m in mutants_of(file)]
    random.Random(arguments.seed).shuffle(mutants)
    print(f"{len(mutants)} sites, {min(arguments.count, len(mutants))} of them are tried", flush=True)
    tree = Tree(REPO / "build" / f"mutation-{arguments.seed}")
    for isa in sorted({room_of(m.file)[0] for m in mutants[: arguments.count]}):  # type: ignore[index]
        if (found := tree.test(AFTER, isa))[0] != "survived":
            sys.exit(f"the tests fail without a mutant on {isa}: {' '.join(found)}")
    results: Counter[str] = Counter()
    with open(tree.root / "mutants.jsonl", "w") as log:
        for mutant in mutants[: arguments.count]:
            begin = time.monotonic()
            result, by = tree.judge(mutant, *room_of(mutant.file))  # type: ignore[misc]
            results[result] += 1
            seconds = round(time.monotonic() - begin, 1)
            row = {**vars(mutant), "result": result, "by": by, "seconds": seconds}
            print(json.dumps(row), file=log, flush=True)
            if result == "survived":
                print(f"{mutant.file}:{mutant.line}: {mutant.before}\n    {mutant.after}", flush=True)
    print(", ".join(f"{count} {result}" for result, count in results.most_common()))


if __name__ == "__main__":
    main()
