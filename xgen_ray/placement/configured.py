"""Profile rows as an operator writes them: checked where they are read, then rows like those of the code."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from xgen_ray.hardware.types import GPUType
from xgen_ray.models.types import ModelTask
from xgen_ray.placement.options import foreign_options
from xgen_ray.placement.profiles import MEMORY_LIMIT, ProfileRow
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.sizes import GIB, MIB
from xgen_ray.placement.types import BackendRow, DeviceAPI, Engine, EngineOptions, Fault

_WITH_GFX: Final = frozenset({GPUType.AMD_RDNA, GPUType.AMD_CDNA, GPUType.UNKNOWN})


def _switch_or_number(value: object) -> object:
    """In place of one complaint for each type that it could have been."""
    if not isinstance(value, int):
        told = "it must be a whole number, or true or false; memory is in bytes, 18 GiB are {size}"
        raise PydanticCustomError("no_row_value", told, {"size": 18 * GIB})
    return value


class ProfileSettings(BaseModel):
    """A row that comes before those of ``profiles.PROFILES``, with the same fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    option: Literal[
        "memory_bytes",
        "slots",
        "batch",
        "ubatch",
        "flash_attention",
        "fit",
        "enforce_eager",
        "gpu_layers",
    ] = Field(
        description="What the row sets: memory_bytes, the most that one model may use of each such GPU, or "
        "an engine option where a model does not say; gpu_layers can only be 0, the CPU."
    )
    value: Annotated[bool | int, BeforeValidator(_switch_or_number)] = Field(
        description="What it is set to; memory in bytes."
    )
    reason: str = Field(min_length=1, description="Why; plans and refusals repeat it.")
    engines: frozenset[Engine] = Field(
        frozenset(), description="Only for these of vllm, llama-server and llama-cpp-python."
    )
    device_apis: frozenset[DeviceAPI] = Field(
        frozenset(),
        description="Only for engines that compute by one of these: cuda, rocm, vulkan, metal, cpu.",
    )
    tasks: frozenset[ModelTask] = Field(
        frozenset(), description="Only for models that do one of these: generate, embed, rerank."
    )
    gpu_types: frozenset[GPUType] = Field(
        frozenset(), description="Only on GPUs of these kinds: nvidia, amd_rdna, amd_cdna, apple_mps."
    )
    gfx: frozenset[Annotated[str, Field(pattern=r"^gfx[0-9a-f]{3,4}$")]] = Field(
        frozenset(), description="Only on AMD GPUs with one of these ids, such as gfx1151."
    )
    integrated: bool | None = Field(
        None, description="Only on GPUs that live off the machine's RAM (true), or on cards (false)."
    )

    @model_validator(mode="after")
    def _can_hold(self) -> "ProfileSettings":
        """``within`` tells ``xgen_ray.serve_config`` which field it is."""
        fault = _row_fault(self.row())
        if fault is not None:
            told = {"told": fault.reason, "within": (fault.option,)}
            raise PydanticCustomError("row_at_fault", "{told}", told)
        return self

    def row(self) -> ProfileRow:
        return ProfileRow(**dict(self))


def _row_fault(row: ProfileRow) -> Fault | None:
    """Why the row could never hold, or not everywhere that it says; its ``option`` is the row's field."""
    reason = _value_reason(row)
    if reason is not None:
        return Fault("value", reason)
    backends = tuple(backend for backend in BACKENDS.values() if _may_hold(row, backend))
    if not backends:
        conditions = _conditions(row)
        kind = "backend for GPUs" if _about_gpus(row) else "backend"
        told = " and ".join(f"{name} {', '.join(sorted(values))}" for name, values in conditions.items())
        return Fault(list(conditions)[-1], f"it holds nowhere: no {kind} has {told}")
    if row.option == MEMORY_LIMIT:
        return None
    asked = EngineOptions.model_validate({row.option: row.value})
    for backend in backends:
        for fault in foreign_options(backend, asked):
            advice = "name the engines that it is for"
            return Fault("option", f"the row holds for {backend.backend} too: {fault.reason}; {advice}")
    return None


def _value_reason(row: ProfileRow) -> str | None:
    """Why the option cannot be that, or None."""
    switch = isinstance(row.value, bool)
    if row.option == MEMORY_LIMIT:
        if switch or int(row.value) < MIB:
            return f"memory_bytes is {row.value}, but it counts bytes: 18 GiB are {18 * GIB}"
        return None
    if row.option == "gpu_layers" and (switch or row.value != 0):
        return f"gpu_layers is {row.value}, but a row can only keep models off the GPU, with 0"
    try:
        EngineOptions.model_validate({row.option: row.value}, strict=True)
    except ValidationError as error:
        return f"{row.option} cannot be {row.value}: {error.errors()[0]['msg']}"
    return None


def _may_hold(row: ProfileRow, backend: BackendRow) -> bool:
    """Whether there can be a node and a model for which it holds."""
    if row.engines and backend.engine not in row.engines:
        return False
    if row.device_apis and backend.device_api not in row.device_apis:
        return False
    if row.tasks and not row.tasks & backend.tasks:
        return False
    if row.gpu_types and not row.gpu_types & backend.gpu_types:
        return False
    if row.gfx and not _WITH_GFX & backend.gpu_types:
        return False
    return backend.needs_gpu or not _about_gpus(row)


def _about_gpus(row: ProfileRow) -> bool:
    limits_one = row.option == MEMORY_LIMIT
    return limits_one or bool(row.gpu_types or row.gfx) or row.integrated is not None


def _conditions(row: ProfileRow) -> Mapping[str, frozenset[str]]:
    """The sets of what it names."""
    sets: Mapping[str, frozenset[str]] = {
        "engines": frozenset(row.engines),
        "device_apis": frozenset(row.device_apis),
        "tasks": frozenset(row.tasks),
        "gpu_types": frozenset(row.gpu_types),
        "gfx": row.gfx,
    }
    return {name: values for name, values in sets.items() if values}
