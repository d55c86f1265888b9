"""Writes stand-ins of this machine's system libraries that know the symbols of manylinux_2_28 only.

    python cmake/old_libraries.py COMPILER FOLDER
    python cmake/old_libraries.py --check WHEEL...

The linker binds a symbol to the newest version that the library has which it is given: what was
linked on a new machine does not load on an old one, though the library still has the old version,
too. Given the stand-ins it binds to the newest version that is old enough. A symbol that has none
stays undefined and is left to csrc/runtime/old_libraries.cpp. The containers of manylinux have a
compiler that does the same for libstdc++, and a glibc that is old enough.

The check is for what auditwheel does not look at, names that were left without a version: they are
Python's own, or nobody's where the wheel is loaded.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# PEP 600 and its policies: the tag's glibc, and the newest versions that RHEL 8's libstdc++ has.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11)}
LIBRARIES = ("libc.so.6", "libm.so.6", "libstdc++.so.6")
# Until glibc 2.34 these had what libc.so.6 has since, and were needed by name. They are still
# there.
ONCE = ("libpthread.so.0", "libdl.so.2", "librt.so.1")

# Of readelf: kind, binding, place, name and version of a dynamic symbol.
SYMBOL = re.compile(
    r" (FUNC|OBJECT|IFUNC|TLS) +(?:GLOBAL|WEAK|UNIQUE) +DEFAULT +(\w+) (\S+?)(@+)(\S+)"
)

# Where a stand-in of each kind lies, and what the assembler calls it; all others are functions.
PLACES = {"OBJECT": (".data", "object"), "TLS": ('.tdata,"awT",%progbits', "tls_object")}


def version_of(text: str) -> tuple[str, tuple[int, ...]] | None:
    """("GLIBC", (2, 17)) of "GLIBC_2.17"; None of what no policy has, such as GLIBC_PRIVATE."""
    family, _, numbers = text.rpartition("_")
    known = family in NEWEST and re.fullmatch(r"[\d.]+", numbers)
    return (family, tuple(map(int, numbers.split(".")))) if known else None


def chosen(symbols: str) -> dict[str, tuple[str, str]]:
    """The kind and the newest version that is old enough, by name, of what `readelf` prints."""
    best: dict[str, tuple[tuple[int, ...], str, str]] = {}
    found = [symbol for symbol in SYMBOL.findall(symbols) if symbol[1] not in ("UND", "ABS")]
    # What nothing new may be linked with has no default version.
    offered = {name for _, _, name, at, _ in found if at == "@@"}
    for kind, _, name, _, text in found:
        version = version_of(text)
        if name not in offered or version is None or version[1] > NEWEST[version[0]]:
            continue
        if name not in best or version[1] > best[name][0]:
            best[name] = (version[1], text, kind)
    return {name: (kind, text) for name, (_, text, kind) in best.items()}


def write(compiler: str, library: str, folder: Path) -> None:
    """Write a stand-in of one library under the name that -l looks for."""
    found = subprocess.check_output([compiler, f"-print-file-name={library}"], text=True).strip()
    table = subprocess.check_output(["readelf", "--dyn-syms", "--wide", found], text=True)
    symbols = chosen(table)
    lines, versions = [], sorted({version for _, version in symbols.values()})
    for number, (name, (kind, version)) in enumerate(sorted(symbols.items())):
        section, is_a = PLACES.get(kind, (".text", "function"))
        lines += [f".section {section}", f".type s{number}, %{is_a}", f".globl s{number}"]
        lines += [f"s{number}: .byte 0", f".size s{number}, 1"]
        lines += [f'.symver s{number}, "{name}@@{version}", remove']
    source, script = folder / f"{library}.s", folder / f"{library}.map"
    source.write_text("\n".join(lines) + "\n")
    script.write_text("".join(f"{version} {{}};\n" for version in versions))
    short = library.partition(".so")[0] + ".so"
    target = folder / (library if library == "libc.so.6" else short)
    options = ["-shared", "-nostdlib", f"-Wl,-soname,{library}", f"-Wl,--version-script={script}"]
    subprocess.run([compiler, *options, str(source), "-o", str(target)], check=True)
    if library == "libc.so.6":
        # What is linked of the C library besides: see its own libc.so.
        script_of = subprocess.check_output([compiler, "-print-file-name=libc.so"], text=True)
        text = Path(script_of.strip()).read_text()
        (folder / short).write_text(re.sub(r"\S*/libc\.so\.6", str(target), text))


# A name that has to come from elsewhere, which a weak one has not; "@" is before its version.
NEEDED = re.compile(r" GLOBAL +DEFAULT +UND +(\S+)")


def unknown(symbols: str) -> list[str]:
    """Of what `readelf` prints the names that a module needs of no version, but for Python's."""
    return [name for name in NEEDED.findall(symbols) if not re.search("@|^_?Py", name)]


def check(wheel: Path) -> None:
    """Exit with the names in a wheel's modules that nobody may have where it is loaded."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as files:
        modules = [name for name in files.namelist() if name.endswith(".so")]
        if not modules:
            sys.exit(f"{wheel}: no module in it")
        for name in modules:
            place = files.extract(name, folder)
            table = subprocess.check_output(["readelf", "--dyn-syms", "--wide", place], text=True)
            if found := unknown(table):
                sys.exit(
                    f"{wheel}: {name} needs {', '.join(found)}, which manylinux_2_28 lacks; "
                    "expected a definition in csrc/runtime/old_libraries.cpp"
                )


if __name__ == "__main__":
    if sys.argv[1] == "--check":
        for wheel in sys.argv[2:]:
            check(Path(wheel))
        sys.exit()
    compiler, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for library in LIBRARIES:
        write(compiler, library, folder)
    for library in ONCE:
        options = ["-shared", "-nostdlib", f"-Wl,-soname,{library}", "-x", "c", "/dev/null"]
        target = folder / f"{library.partition('.so')[0]}.so"
        subprocess.run([compiler, *options, "-o", str(target)], check=True)
