"""
Looks at a wheel and at a source distribution as those do who install them.

The wheel has to run on old systems and to be small. It is installed into a bare environment, where
no compiler can be found, and runs the first example of the README. The source distribution has to
be all that a build takes.

Usage: python tests/packages.py dist/killercall-....whl [dist/killercall-....tar.gz]
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_BYTES = 1_500_000
# RHEL 7 has this one, and each system has it that is younger.
OLDEST_GLIBC = (2, 17)
EXAMPLE = re.compile(r"```python\n(.*?)```\s*```text\n(.*?)```", re.DOTALL)
VARIABLE = re.compile(r"pid \d+|0x[0-9a-f]+|File \"[^\"]*\"")
COMPILERS = ("cc", "gcc", "clang", "rustc", "cargo", "zig")
# Of a build from source: does it run at all?
CALL = "import killercall; print(killercall.killer_call(pow, timeout=20)(2, 5))"


def check_wheel(wheel: Path) -> list[str]:
    """What is wrong with it."""
    wrong = []
    size = wheel.stat().st_size
    if size > MOST_BYTES:
        wrong.append(f"it has {size} bytes, more than {MOST_BYTES}")
    if "-cp311-abi3-" not in wheel.name:
        wrong.append("it is not for every CPython from 3.11 on")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        binary = archive.read("killercall/_core.abi3.so")
    tops = {name.split("/")[0] for name in names}
    if {top for top in tops if not top.endswith(".dist-info")} != {"killercall"}:
        wrong.append(f"it puts more than the package into site-packages: {sorted(tops)}")
    wrong += [
        f"{name} is missing"
        for name in ("py.typed", "_core.pyi", "_typing.py", "__main__.py")
        if f"killercall/{name}" not in names
    ]
    if "linux" in wheel.name:
        wrong += _check_binary(binary)
    return wrong


def _check_binary(binary: bytes) -> list[str]:
    wrong = [
        f"it has the section {section}, so it is not stripped"
        for section in (".symtab", ".debug_info")
        if section.encode() + b"\0" in binary
    ]
    # Python ends threads by unwinding their stacks with this one, and it must meet no other.
    if b"libgcc_s.so.1\0" not in binary:
        wrong.append("it does not use the unwinder of the system")
    versions = {
        tuple(map(int, version.split(b"."))) for version in re.findall(rb"GLIBC_([\d.]+)\0", binary)
    }
    if not versions:
        wrong.append("it names no version of glibc")
    too_young = sorted(version for version in versions if version[:2] > OLDEST_GLIBC)
    if too_young:
        wrong.append(f"it needs glibc {too_young[-1]}, not {OLDEST_GLIBC}")
    return wrong


class Bare:
    """An environment with nothing but pip, where nothing else is found."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        self._bin = folder / "bin"
        self._env = {"PATH": str(self._bin), "HOME": str(folder), "LANG": "C.UTF-8"}
        found = [name for name in COMPILERS if shutil.which(name, path=self._env["PATH"])]
        assert [] == found

    def install(self, wheel: Path) -> None:
        """Installs it, and what it needs, from wheels."""
        command = ["install", "--only-binary", ":all:", "--force-reinstall", wheel]
        subprocess.run([*self._pip(), *command], env=self._env, check=True)

    def build(self, source: Path, folder: Path) -> Path:
        """Builds a wheel from source, as quick as can be; with the compiler, but none of our tools."""
        env = os.environ | {"MATURIN_PEP517_ARGS": "--profile dev"}
        command = ["wheel", "--no-deps", "--wheel-dir", folder, source]
        subprocess.run([*self._pip(), *command], env=env, check=True, cwd=folder)
        (wheel,) = folder.glob("*.whl")
        return wheel

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs the interpreter, isolated from this one's surroundings."""
        command = [self._bin / "python", "-I", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=self._env, timeout=60)

    def _pip(self) -> list[str | Path]:
        return [self._bin / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]


def check_example(bare: Bare, folder: Path) -> list[str]:
    """What the first example of the README does not print, though it says so."""
    found = EXAMPLE.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    script = folder / "script.py"
    script.write_text(found[1], encoding="utf-8")
    done = bare.run(script)
    printed = VARIABLE.sub("X", done.stdout + done.stderr)
    said = VARIABLE.sub("X", found[2]).splitlines()
    return [f"the README's line is not printed: {line}" for line in said if line not in printed]


def check_source(bare: Bare, source: Path, folder: Path) -> list[str]:
    """What is wrong with a wheel that was built from it."""
    bare.install(bare.build(source, folder))
    done = bare.run("-c", CALL)
    if (done.returncode, done.stdout) != (0, "32\n"):
        return [f"a call said {done.stdout!r} and {done.stderr!r}"]
    return []


def main(wheel: Path, source: Path | None = None) -> int:
    """Prints what is wrong; returns how much that is."""
    with tempfile.TemporaryDirectory(prefix="killercall-package-") as name:
        folder = Path(name)
        bare = Bare(folder / "bare")
        bare.install(wheel.resolve())
        wrong = [
            f"{wheel.name}: {what}" for what in (*check_wheel(wheel), *check_example(bare, folder))
        ]
        if source is not None:
            built = folder / "built"
            built.mkdir()
            wrong += [
                f"{source.name}: {what}" for what in check_source(bare, source.resolve(), built)
            ]
    for what in wrong:
        print(what, file=sys.stderr)
    print(f"{wheel.name}: {wheel.stat().st_size} bytes, {len(wrong)} faults")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
