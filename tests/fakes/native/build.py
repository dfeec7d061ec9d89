"""Builds the stand-in vendor libraries with the C compiler."""

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

# The amdsmi package lies apart: where it is installed without AMD's library, Ray cannot be imported.
AMDSMI_SITE = Path(__file__).parents[3] / ".cache" / "amdsmi"
HERE = Path(__file__).parent
_FLAGS = ("-shared", "-fPIC", "-O0", "-Wall", "-Wextra", "-Werror", f"-I{HERE}")


def build_nvml(folder: Path, built_in: Mapping[str, str] | None = None) -> Path:
    """``libnvidia-ml.so.1`` in ``folder``; put that on LD_LIBRARY_PATH for pynvml to find it.

    ``built_in`` are variables that the library finds where the environment lacks them: a program that passes
    on only what it must still sees the machine's cards, as they are not in the environment of a real one.
    """
    library = folder / "libnvidia-ml.so.1"
    _compile(library, HERE / "nvml.c", *_variables(folder, built_in))
    return library


def build_amdsmi(folder: Path, built_in: Mapping[str, str] | None = None) -> Path:
    """``lib/libamd_smi.so`` in ``folder``; set ROCM_PATH to that for amdsmi to find it.
    ``built_in`` as for NVML.

    Needs the amdsmi package, whose wrapper refuses a library that lacks one of its 180 symbols.
    """
    source = HERE / "amdsmi.c"
    stubs = folder / "stubs.c"
    stubs.write_text(_stubs(_bound_symbols(), _defined_symbols(source.read_text())))
    library = folder / "lib" / "libamd_smi.so"
    library.parent.mkdir(exist_ok=True)
    _compile(library, source, stubs, *_variables(folder, built_in))
    return library


def _variables(folder: Path, built_in: Mapping[str, str] | None) -> tuple[Path, ...]:
    """A source that sets them when the library is loaded."""
    if not built_in:
        return ()
    lines = [f"    setenv({json.dumps(name)}, {json.dumps(value)}, 0);" for name, value in built_in.items()]
    source = folder / "variables.c"
    head = ["#include <stdlib.h>", "__attribute__((constructor)) static void set_variables(void)", "{"]
    source.write_text("\n".join([*head, *lines, "}", ""]))
    return (source,)


def _bound_symbols() -> set[str]:
    """Every symbol that the wrapper looks up at its import."""
    wrapper = AMDSMI_SITE / "amdsmi" / "amdsmi_wrapper.py"
    if not wrapper.exists():
        raise RuntimeError(f"{AMDSMI_SITE} lacks the amdsmi package: make test puts it there")
    return set(re.findall(r"_libraries\['libamd_smi\.so'\]\.(\w+)", wrapper.read_text()))


def _defined_symbols(source: str) -> set[str]:
    return set(re.findall(r"^amdsmi_status_t (amdsmi_\w+)\(", source, re.MULTILINE))


def _stubs(bound: set[str], defined: set[str]) -> str:
    unknown = defined - bound
    if unknown:
        raise RuntimeError(f"amdsmi.c defines what the wrapper does not bind: {sorted(unknown)}")
    lines = [f"int {symbol}(void) {{ return 2; /* not supported */ }}" for symbol in sorted(bound - defined)]
    return "\n".join(["/* The rest of amdsmi's symbols. */", *lines, ""])


def _compile(library: Path, *sources: Path) -> None:
    command = ["cc", *_FLAGS, "-o", str(library), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
