"""Programs that the system itself refuses to run, made with the C compiler."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from xgen_ray.process import ChildProcess, FailureClass, LaunchSpec

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
]


def compiled(folder: Path, source: str, *options: str, name: str = "program") -> Path:
    code = folder / f"{name}.c"
    code.write_text(source)
    subprocess.run(["cc", "-o", folder / name, code, *options], check=True, cwd=folder)
    return folder / name


async def death_of(program: Path) -> tuple[FailureClass, str]:
    async with ChildProcess(LaunchSpec((str(program),)), base_env=dict(os.environ)) as child:
        failure = await child.wait()
        return failure.failure, failure.message


async def test_a_missing_library(tmp_path: Path) -> None:
    compiled(tmp_path, "int foo(void) { return 0; }", "-shared", "-fPIC", name="libfoo.so")
    program = compiled(tmp_path, "int foo(void); int main(void) { return foo(); }", "libfoo.so")
    (tmp_path / "libfoo.so").unlink()
    failure, message = await death_of(program)
    assert failure is FailureClass.MISSING_LIBRARY
    assert "libfoo.so" in message


async def test_a_program_built_on_a_newer_system(tmp_path: Path) -> None:
    program = compiled(tmp_path, '#include <stdio.h>\nint main(void) { return puts("x"); }')
    content = program.read_bytes()
    newest = sorted(part[:4] for part in content.split(b"GLIBC_2.")[1:] if part[:2].isdigit())[-1][:2]
    program.write_bytes(content.replace(b"GLIBC_2." + newest, b"GLIBC_2.99"))
    failure, message = await death_of(program)
    assert failure is FailureClass.MISSING_LIBRARY
    assert "GLIBC_2.99" in message


async def test_a_program_built_for_another_processor(tmp_path: Path) -> None:
    failure, _ = await death_of(compiled(tmp_path, "int main(void) { __builtin_trap(); }"))
    assert failure is FailureClass.ILLEGAL_INSTRUCTION
