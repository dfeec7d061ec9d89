"""A machine with one AMD card and three builds of llama-server that misbehave as a script says.

What is real: the whole of xgen-ray, from detection by the real amdsmi package to the processes of engines,
their commands, their environment and their ends. What stands in: the card (a native library that answers as
AMD's does) and what the engines compute.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.fakes.native.build import AMDSMI_SITE, build_amdsmi
from tests.models.build import write_gguf
from tests.stack import STAND_IN_ENGINE, Stack, wait_until

CARD = "name=AMD Radeon RX 7900 XTX,gfx=1100,vram_mb=24560,bdf=0000:03:00.0"
VULKAN, ROCM, CPU = "vulkan", "rocm", "cpu"
# In the order in which they are preferred.
BUILDS = {
    VULKAN: "Vulkan0: AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24400 MiB free)",
    ROCM: "ROCm0: AMD Radeon RX 7900 XTX (24560 MiB, 24400 MiB free)",
    CPU: None,
}


@dataclass(frozen=True)
class Start:
    """One start of an engine: by which build, as which process, with which arguments."""

    build: str
    pid: int
    arguments: tuple[str, ...]

    def value(self, flag: str) -> str:
        return self.arguments[self.arguments.index(flag) + 1]

    @property
    def context(self) -> int:
        """Of each of its slots."""
        return int(self.value("--ctx-size")) // int(self.value("--parallel"))


class LadderMachine:
    """The stack on that machine, with further ``arguments`` for `xgen-ray up`. ``home`` is its folder; model
    files lie in ``home / "models"``.
    """

    def __init__(self, home: Path, *arguments: str) -> None:
        self.models = home / "models"
        self._scripts = home / "scripts"
        rocm = home / "rocm"
        for folder in (self.models, self._scripts, rocm):
            folder.mkdir()
        build_amdsmi(rocm, {"STANDIN_AMDSMI_CARDS": CARD})
        environment = {
            "ROCM_PATH": str(rocm),
            "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(AMDSMI_SITE)])),
            # Ray's agents would pass metrics on every ten seconds only.
            "RAY_metrics_report_interval_ms": "3000",
        }
        engines = [word for build in BUILDS for word in ("--engine", self._engine(build))]
        self.stack = Stack(home, "--models", str(self.models), *engines, *arguments, environment=environment)

    def _engine(self, build: str) -> str:
        command = [sys.executable, str(STAND_IN_ENGINE), "--build", build, "--script", str(self._scripts)]
        device = BUILDS[build]
        quoted = f" --lists '{device}'" if device is not None else ""
        return f"llama-server-{build}={' '.join(command)}{quoted}"

    def model(self, name: str, **script: list[list[str]]) -> Path:
        """A model file of its own, and what its engines shall do: by build, start by start."""
        if script:
            (self._scripts / f"{name}.json").write_text(json.dumps(script))
        return write_gguf(self.models / f"{name}.gguf", context_length=8192)

    def starts(self, name: str) -> tuple[Start, ...]:
        """Every start of an engine for the model, the oldest first."""
        journal = (self._scripts / "starts").read_text().splitlines()
        told = [json.loads(line) for line in journal]
        return tuple(
            Start(line["build"], line["pid"], tuple(line["arguments"]))
            for line in told
            if line["model"] == name
        )

    def rungs(self, name: str) -> list[str]:
        return [start.build for start in self.starts(name)]

    def load(self, name: str, **request: Any) -> httpx.Response:
        return self.stack.load(self.models / f"{name}.gguf", name=name, **request)

    def status(self, name: str) -> dict[str, Any]:
        status = self.stack.status(name)
        assert status is not None, f"{name} is not known"
        return status

    def until_ready(self, name: str, pid_before: int, seconds: float) -> dict[str, Any]:
        """The status once another engine than ``pid_before`` is ready."""

        def look() -> dict[str, Any] | None:
            status = self.stack.status(name)
            replicas = (status or {}).get("replicas", ())
            ready = [one["state"] for one in replicas] == ["ready"]
            # Between an engine's end and its report, its replica has no process.
            return status if ready and replicas[0]["pid"] not in (None, pid_before) else None

        found: dict[str, Any] = wait_until(look, seconds, f"{name} ready on another engine")
        return found

    def set(self, name: str, **knobs: Any) -> None:
        """Change how the model's running engine behaves."""
        url = self.status(name)["replicas"][0]["url"]
        assert httpx.post(f"{url}/_set", json=knobs, timeout=30, trust_env=False).status_code == 200

    def alive(self, name: str) -> list[int]:
        """Those of the model's engines that still live."""
        pids = [start.pid for start in self.starts(name)]
        return [pid for pid in pids if psutil.pid_exists(pid) and is_engine(pid, name)]


def is_engine(pid: int, name: str) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and name in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def engine_of(status: dict[str, Any]) -> int:
    """The process of the model's only engine."""
    (replica,) = status["replicas"]
    pid: int = replica["pid"]
    return pid
