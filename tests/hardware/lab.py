"""Machines to detect: the real vendor packages over stand-in native libraries, in real child processes."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.native.build import AMDSMI_SITE
from xgen_ray.hardware.codec import report_from_json
from xgen_ray.hardware.isolate import ask_children
from xgen_ray.hardware.types import DetectorReport

_TORCH_STANDIN = Path(__file__).parents[1] / "fakes" / "torch_standin.py"

NVML_DRIVER_NOT_LOADED = 9
AMDSMI_DRIVER_NOT_LOADED = 34
# Long enough for a child on a busy machine; only tests of hanging libraries wait that long.
DEADLINE_S = 30.0


@dataclass(frozen=True)
class Lab:
    """Stand-in libraries, and environments in which children find them."""

    nvml: Path
    rocm: Path

    def env(self, *, nvidia: str | None = None, amd: str | None = None, **more: str) -> dict[str, str]:
        """A machine with these cards; without any of a vendor, its driver is not loaded."""
        python_path = [*filter(None, [more.pop("PYTHONPATH", "")]), str(AMDSMI_SITE)]
        env = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join(python_path),
            "LD_LIBRARY_PATH": str(self.nvml),
            "ROCM_PATH": str(self.rocm),
        }
        if nvidia is None:
            env["STANDIN_NVML_INIT"] = str(NVML_DRIVER_NOT_LOADED)
        else:
            env["STANDIN_NVML_CARDS"] = nvidia
        if amd is None:
            env["STANDIN_AMDSMI_INIT"] = str(AMDSMI_DRIVER_NOT_LOADED)
        else:
            env["STANDIN_AMDSMI_CARDS"] = amd
        return env | more


def ask(detector: str, env: dict[str, str], *, deadline_s: float = DEADLINE_S) -> DetectorReport:
    """One detector's report from a child of its own."""
    answer = ask_children("report", [detector], deadline_s=deadline_s, env=env)[detector]
    if answer.reason is not None:
        return DetectorReport(detector, reason=answer.reason)
    return report_from_json(answer.output)


def install_torch(folder: Path, *, cuda: str | None, hip: str | None) -> Path:
    """The stand-in torch package, built for CUDA or ROCm, in ``folder``; put that on PYTHONPATH."""
    package = folder / "torch"
    package.mkdir()
    shutil.copy(_TORCH_STANDIN, package / "__init__.py")
    lines = [
        "from typing import Optional",
        "__version__ = '2.11.0'",
        "debug = False",
        f"cuda: Optional[str] = {cuda!r}",
        "git_version = 'stand-in'",
        f"hip: Optional[str] = {hip!r}",
    ]
    (package / "version.py").write_text("\n".join(lines) + "\n")
    return folder


def torch_env(folder: Path, cards: Sequence[dict[str, object]]) -> dict[str, str]:
    return {"PYTHONPATH": str(folder), "STANDIN_TORCH_CARDS": json.dumps(cards)}
