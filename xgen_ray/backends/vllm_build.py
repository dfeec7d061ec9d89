"""An installed vLLM: what it was built for, which platform it would choose here, and if the wrong one, why.

Pure but for ``interpreter_of``, which reads the first lines of a script.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xgen_ray.backends.vllm_questions import MARK
from xgen_ray.placement.types import BackendRow, BackendStatus, DeviceAPI

_PYTHON = re.compile(r"(?:python|pypy)[\d.]*")
_SHEBANG = re.compile(r"#!\s*(\S*python[\d.]*)\s*$")
# What pip and uv write where the interpreter's path is too long for a first line.
_LONG_SHEBANG = re.compile(r"'''exec'\s+\"?([^\"\s]+)\"?\s")
_READ_BYTES: Final = 4096
# How the server is started: the module, and what follows it.
_SERVERS: Final[Mapping[str, tuple[str, ...]]] = {
    "vllm.entrypoints.openai.api_server": ("-m", "vllm.entrypoints.openai.api_server"),
    "vllm.entrypoints.cli.main": ("-m", "vllm.entrypoints.cli.main", "serve"),
}

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VllmBuild:
    """What vLLM's own interpreter told. ``problem``: why it could not tell the rest.

    ``built_for`` is what its torch computes on; ``platform`` is the class that vLLM chooses here and
    ``device`` what that stands for, None for none; ``reasons`` are why it did not choose the others.
    """

    interpreter: Command
    version: str | None = None
    built_for: DeviceAPI | None = None
    platform: str | None = None
    device: DeviceAPI | None = None
    reasons: tuple[str, ...] = ()
    server: Command | None = None
    flashinfer: bool = False
    problem: str | None = None

    @property
    def works(self) -> bool:
        """Whether it would compute on what it was built for."""
        return self.problem is None and self.device is not None and self.device is self.built_for

    @property
    def takes_uuids(self) -> bool:
        """Whether it takes CUDA's GPUs by their UUIDs: 0.25.1 does, 0.23 reads numbers alone."""
        found = re.match(r"(\d+)\.(\d+)", self.version or "")
        return found is None or (int(found[1]), int(found[2])) >= (0, 25)

    @property
    def command(self) -> Command:
        """What starts its server."""
        return (*self.interpreter, *(self.server or next(iter(_SERVERS.values()))))


def interpreter_of(command: Sequence[str], path: str) -> Command | None:
    """The command of the Python that has vLLM, from what an operator names: that Python, or ``vllm``.

    A script says in its first line which Python runs it. None: neither, as far as can be seen, or one that
    is started by another program: that may keep the environment and the signals from it, and need not run
    it on this machine.
    """
    words = tuple(command)
    for server in _SERVERS.values():
        if words[-len(server) :] == server:
            words = words[: -len(server)]
    if len(words) == 1 and _PYTHON.fullmatch(Path(words[0]).name):
        return words
    if words[-1:] == ("serve",):
        words = words[:-1]
    if len(words) != 1 or Path(words[0]).name != "vllm":
        return None
    found = shutil.which(words[0], path=path)
    return None if found is None else _interpreter_of_script(Path(found))


def _interpreter_of_script(script: Path) -> Command | None:
    try:
        with script.open("rb") as file:
            lines = file.read(_READ_BYTES).decode("utf-8", "replace").splitlines()[:2]
    except OSError:
        return None
    named = _SHEBANG.match(lines[0]) if lines else None
    if named is None and len(lines) > 1:
        named = _LONG_SHEBANG.match(lines[1])
    # A script beside its Python, or a link to one, as environments are laid out.
    beside = [folder / "python" for folder in (script.parent, script.resolve().parent)]
    candidates = [Path(named[1]), *beside] if named else beside
    return next(((str(candidate),) for candidate in candidates if candidate.is_file()), None)


def parse_build(interpreter: Command, lines: Sequence[str]) -> VllmBuild:
    """The answer among the lines that vLLM's interpreter printed."""
    line = next((line for line in reversed(lines) if line.startswith(MARK)), None)
    try:
        told = json.loads(line.removeprefix(MARK)) if line is not None else None
    except ValueError:
        told = None
    if not isinstance(told, dict):
        last = lines[-1] if lines else "it printed nothing"
        return VllmBuild(interpreter, problem=f"it gave no answer about vLLM; it last said: {last}")
    reasons = told.get("reasons")
    return VllmBuild(
        interpreter=interpreter,
        version=_text(told.get("version")),
        built_for=_api(told.get("built_for")),
        platform=_text(told.get("platform")),
        device=_api(told.get("device")),
        reasons=tuple(str(reason) for reason in reasons) if isinstance(reasons, list) else (),
        server=_SERVERS.get(str(told.get("server"))),
        flashinfer=told.get("flashinfer") is True,
        problem=_text(told.get("problem")),
    )


def judge(row: BackendRow, build: VllmBuild) -> BackendStatus:
    """Whether ``build`` can serve ``row`` on this node, why, and what to do if not."""
    name = " ".join(build.interpreter)
    status = BackendStatus(row.backend, False, "", build.command, build.version)
    # One for another device is not started for this one.
    other = BackendStatus(row.backend, False, "", (), build.version)
    python = f"{name} -m pip"
    if build.problem is not None or build.built_for is None:
        problem = build.problem or "its torch does not say what it was built for"
        return _not(status, f"vLLM at {name} does not run: {problem}", f"mend it: {python} install vllm")
    what = f"vLLM {build.version or '(no version)'} at {name}"
    if build.built_for is not row.device_api:
        return _not(
            other,
            f"{what} is built for {build.built_for}, not for {row.device_api}",
            f"install vLLM's build for {row.device_api} in an environment of its own, and name its Python "
            f"as the command of {row.backend}",
        )
    if build.device is row.device_api:
        reason = f"{what}, built for {build.built_for}, chooses {build.platform} here"
        return BackendStatus(row.backend, True, reason, build.command, build.version)
    why = _why_not(row.device_api, build.reasons)
    return _not(
        status,
        f"{what}, built for {build.built_for}, would choose {build.platform} here: {why}",
        _advice(why, python),
    )


def _not(status: BackendStatus, reason: str, advice: str) -> BackendStatus:
    return BackendStatus(status.backend, False, reason, status.command, status.version, advice=advice)


# Of the words that vLLM swallows: what to do about them. ``{pip}`` is that of its own environment.
_ADVICE: Final = (
    (
        re.compile(r"No module named '?amdsmi"),
        "install amdsmi where vLLM is, in an image before vLLM: {pip} install amdsmi",
    ),
    (
        re.compile(r"libamd_smi|amd_smi.*(?:cannot open|not found)", re.IGNORECASE),
        "install ROCm's libamd_smi, or name its folder in ROCM_PATH or LD_LIBRARY_PATH",
    ),
    (
        re.compile(r"NVML Shared Library Not Found|Driver Not Loaded", re.IGNORECASE),
        "load the NVIDIA driver (nvidia-smi must work); in a container, give it the GPUs",
    ),
    (
        re.compile(r"no GPU is found", re.IGNORECASE),
        "check that the GPUs are visible: driver, container, rights",
    ),
)
_PLATFORM_NAMES: Final = {DeviceAPI.CUDA: "CUDA", DeviceAPI.ROCM: "ROCm", DeviceAPI.CPU: "CPU"}


def _why_not(api: DeviceAPI, reasons: Sequence[str]) -> str:
    name = _PLATFORM_NAMES.get(api, str(api))
    own = [reason for reason in reasons if name in reason]
    return own[-1] if own else f"it does not say why not {name}"


def _advice(why: str, pip: str) -> str:
    known = next((advice for pattern, advice in _ADVICE if pattern.search(why)), None)
    return (
        known.format(pip=pip) if known is not None else "mend what the reason names, or use another backend"
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _api(value: object) -> DeviceAPI | None:
    return next((api for api in DeviceAPI if api == value), None)
