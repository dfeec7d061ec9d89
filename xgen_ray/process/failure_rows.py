"""What engines print when they die, as rows: a pattern, a class, plain words, and what to do.

A row's message may use the pattern's named groups. Order matters only for rows that match the same
line: the first one wins.
"""

import re
import signal
from dataclasses import dataclass

from xgen_ray.process.types import FailureClass


@dataclass(frozen=True, slots=True)
class FailureRow:
    """``pattern`` is searched in one log line at a time."""

    failure: FailureClass
    pattern: re.Pattern[str]
    message: str
    advice: str


def _row(failure: FailureClass, pattern: str, message: str, advice: str) -> FailureRow:
    return FailureRow(failure, re.compile(pattern), message, advice)


_LESS_MEMORY = "Lower the context or the number of slots, use a smaller quantization, or use more GPUs."
_NEXT_BACKEND = "Another backend may run it."
_CHECK_FILE = "Check the path, then download or copy the file again and compare its size and checksum."

# Lines that name the cause. Of several, the latest counts: engines go on after some of them (a smaller
# buffer, another device), and what comes last is what they died of.
CAUSES: tuple[FailureRow, ...] = (
    # -- the GPU itself
    _row(
        FailureClass.GPU_PAGE_FAULT,
        r"Memory access fault by GPU|GPU page fault|HSA_STATUS_ERROR_MEMORY_(?:FAULT|APERTURE_VIOLATION)"
        r"|[Ii]llegal memory access was encountered",
        "The GPU was asked to touch memory that is not mapped (a GPU page fault).",
        f"A fault of the driver or of the engine's kernels, not of the model. {_NEXT_BACKEND}",
    ),
    _row(
        # A hung or reset device ends in the same decision as a page fault: the next backend.
        FailureClass.GPU_PAGE_FAULT,
        r"ErrorDeviceLost|DeviceLostError|HW Exception by GPU|GPU Hang|unspecified launch failure"
        r"|[Uu]ncorrectable ECC error",
        "The GPU stopped working in mid-computation (device lost, hang or hardware error).",
        f"See the kernel log of the node. {_NEXT_BACKEND}",
    ),
    # -- the device is not there, or not ours, or not the one this engine was built for
    _row(
        FailureClass.DEVICE_PERMISSION,
        r"(?P<device>/dev/(?:kfd|dri|nvidia)[\w/.-]*).{0,120}(?i:permission denied|not permitted)"
        r"|(?i:permission denied|not permitted).{0,120}(?P<device2>/dev/(?:kfd|dri|nvidia)[\w/.-]*)",
        "No permission to open the GPU's device file {device}.",
        "Add the user to the groups that own it (render, video), or pass the device to the container.",
    ),
    _row(
        FailureClass.DEVICE_MISSING,
        r"invalid device: (?P<device>\S+)|invalid value for main_gpu: (?P<device2>\S+)",
        "The engine does not have the device {device}.",
        "Ask the engine for its devices (--list-devices), and check the driver and the visibility variables.",
    ),
    _row(
        FailureClass.DEVICE_MISSING,
        r"invalid literal for int\(\) with base 10: '(?P<device>(?:GPU|MIG)-[^']*)",
        "This build of vLLM knows GPUs by their number alone, and {device} has none that is certain.",
        "Use a newer vLLM. Where a GPU of the node is in MIG mode or does not answer, no number is certain.",
    ),
    _row(
        FailureClass.DEVICE_MISSING,
        r"Failed to infer device type|UnspecifiedPlatform|No (?:CUDA|HIP) GPUs are available"
        r"|Found no NVIDIA driver|(?:CUDA|NVIDIA) driver version is insufficient|driver.{0,40}is too old"
        r"|no (?:CUDA|ROCm)-capable device is detected|hipErrorNoDevice|Tensile host: No devices found",
        "The engine found no GPU that it can use.",
        "Check that the driver is loaded and new enough, and that the GPU is visible to the process.",
    ),
    _row(
        FailureClass.UNSUPPORTED_ARCHITECTURE,
        r"Illegal seek for GPU arch ?: (?P<arch>gfx\w+)|no kernel image is available|hipErrorNoBinaryForGpu"
        r"|hipErrorInvalidDeviceFunction|invalid device function|TensileLibrary.{0,80}No such file",
        "The engine was not built for this GPU {arch}.",
        "Use a build that lists this GPU's architecture, or the Vulkan backend, which needs none.",
    ),
    # -- memory
    _row(
        FailureClass.OUT_OF_MEMORY,
        r"Free memory on device(?: \S+)? \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than"
        r" desired GPU memory utilization \([\d.]+, (?P<need>[\d.]+) GiB\)",
        "The GPU has {free} of {total} GiB free, and vLLM was told to take {need} GiB.",
        "Lower gpu_memory_utilization, or end what else uses this GPU.",
    ),
    _row(
        FailureClass.OUT_OF_MEMORY,
        r"max seq len \((?P<context>\d+)\).{0,40}?(?P<need>[\d.]+) GiB KV cache is needed, which is larger"
        r" than the available KV cache memory \((?P<free>[\d.]+) GiB\)",
        "One request of {context} tokens needs {need} GiB of cache, and only {free} GiB are left for it.",
        "Lower the context, or give the engine more: a higher gpu_memory_utilization, or more GPUs.",
    ),
    _row(
        FailureClass.OUT_OF_MEMORY,
        r"Available memory on node \d+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\).{0,60}?less than"
        r".{0,40}?\((?P<need>[\d.]+)/",
        "The node has {free} of {total} GiB of RAM free, and vLLM needs {need} GiB.",
        "Lower the context, or end what else uses the node's memory.",
    ),
    _row(
        FailureClass.OUT_OF_MEMORY,
        r"No available memory for the cache blocks|is larger than the available KV cache memory"
        r"|failed to allocate buffer for kv cache",
        "The model fits, but not the cache for its context.",
        _LESS_MEMORY,
    ),
    _row(
        FailureClass.OUT_OF_MEMORY,
        r"(?:CUDA|HIP|ROCm)(?: error:)? out of memory|[Cc]udaMalloc failed: out of memory|OutOfMemoryError"
        r"|ErrorOutOfDeviceMemory|hipErrorOutOfMemory|hipErrorMemoryAllocation"
        r"|HSA_STATUS_ERROR_OUT_OF_RESOURCES|CUBLAS_STATUS_ALLOC_FAILED|CallbackErrorOutOfMemory"
        r"|Device memory allocation of size \d+ failed|failed to allocate compute (?:pp )?buffers"
        r"|(?:unable|failed) to allocate (?:CUDA|ROCm|Vulkan|Metal)\S* buffer",
        "The GPU ran out of memory.",
        _LESS_MEMORY,
    ),
    _row(
        FailureClass.OUT_OF_MEMORY,
        # An engine that may not lock its memory says so and goes on.
        r"^(?!.*failed to mlock).*?"
        r"(?:ErrorOutOfHostMemory|std::bad_alloc|[Cc]an(?:not|'t) allocate memory|insufficient memory"
        r"|\bMemoryError\b|unable to allocate \S+ buffer|failed to allocate"
        r"|memory allocation of \d+ bytes failed)",
        "The machine ran out of memory.",
        _LESS_MEMORY,
    ),
    _row(
        FailureClass.CRASHED,
        r"No space left on device",
        "A disk or the shared memory of the node (/dev/shm) is full.",
        "Free space on the disk, or give the container a larger /dev/shm.",
    ),
    # -- the model
    _row(
        FailureClass.UNSUPPORTED_ARCHITECTURE,
        r"unknown model architecture: '(?P<arch>[^']*)'"
        r"|Model architectures \[(?P<arch2>[^\]]{0,200})\] are not supported"
        r"|model type [`'](?P<arch3>[^`']+)[`'] but Transformers does not recognize"
        r"|unknown pre-tokenizer type: '(?P<arch4>[^']*)'|has no vLLM implementation",
        "This build of the engine does not know the model's architecture {arch}.",
        "Use a newer build of the engine, or another format of the model.",
    ),
    _row(
        FailureClass.BAD_MODEL_FILE,
        r"failed to open GGUF file '?(?P<path>[^']*)",
        "The model file {path} cannot be opened.",
        "Check the path and that the engine's user may read it, on the node that runs the engine.",
    ),
    _row(
        FailureClass.BAD_MODEL_FILE,
        r"invalid magic characters|failed to read magic",
        "The model file is not a GGUF file, or is empty.",
        _CHECK_FILE,
    ),
    _row(
        FailureClass.BAD_MODEL_FILE,
        r"is not within the file bounds|model is corrupted or incomplete|missing tensor '"
        r"|wrong number of tensors|has wrong shape; expected|failed to read (?:key-value pairs|tensor )"
        r"|Error while deserializing header|SafetensorError|MetadataIncompleteBuffer|HeaderTooLarge",
        "The model file is damaged or incomplete.",
        _CHECK_FILE,
    ),
    _row(
        FailureClass.BAD_MODEL_FILE,
        r"HFValidationError|is not a local folder and is not a valid model identifier|RepositoryNotFoundError"
        r"|Invalid repository ID or local directory|LocalEntryNotFoundError|Can't load the configuration of"
        r"|does not appear to have a file named|GatedRepoError",
        "The model is neither a folder with a model nor a repository that can be read.",
        "Check the path or the name (org/name), and whether the repository needs a token.",
    ),
    _row(
        FailureClass.UNKNOWN_FLAG,
        r"User-specified max_model_len \((?P<context>\d+)\) is greater than the derived max_model_len"
        r" \(\w+=(?P<most>[\d.]+)",
        "The context of {context} tokens is more than the {most} that the model's configuration allows.",
        "Lower the context.",
    ),
    # -- how it was started
    _row(
        FailureClass.PORT_IN_USE,
        r"(?i:address already in use)|couldn't bind HTTP server socket|\[Errno 98\]|EADDRINUSE",
        "The engine could not listen on its address: the port is taken, or the host is not this machine's.",
        "Try again on another port; see what listens there.",
    ),
    _row(
        FailureClass.UNKNOWN_FLAG,
        r"error: (?:invalid|unknown) argument: ?(?P<flag>\S+)|unrecognized arguments: (?P<flag2>.{1,200})"
        r"|error while handling argument \"(?P<flag3>[^\"]+)\"|error: argument (?P<flag4>[^\s:]+): "
        r"|[Nn]o such option:? (?P<flag5>\S+)|unrecognized option '?(?P<flag6>[^'\s]+)",
        "This build of the engine does not accept the option {flag}.",
        "See what the build knows (--help); flags change between builds.",
    ),
    _row(
        FailureClass.MISSING_LIBRARY,
        r"error while loading shared libraries: (?P<library>[^\s:]+)|Library not loaded: (?P<library2>\S+)"
        r"|(?P<library3>\S+\.so[.\d]*): cannot open shared object file",
        "A shared library is missing: {library}.",
        "Install the package that has it, or add its folder to LD_LIBRARY_PATH.",
    ),
    _row(
        FailureClass.MISSING_LIBRARY,
        r"version `(?P<library>(?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)' not found",
        "The engine was built for a newer system than this one: it needs {library}.",
        "Use a build made for this distribution or an older one, or run it in its own image.",
    ),
    _row(
        FailureClass.MISSING_LIBRARY,
        r"No module named '?xgen_ray_gate",
        "vLLM was not started with the PYTHONPATH that it was given: its command changes it.",
        "Name vLLM's own Python as the command, or a script that leaves PYTHONPATH as it is.",
    ),
    _row(
        FailureClass.MISSING_LIBRARY,
        # vLLM looks for code of other processors, and goes on without.
        r"^(?!.*Failed to import from).*?"
        r"(?:symbol lookup error: (?P<library>[^\s:]+)|undefined symbol: (?P<library2>\S+)"
        r"|No module named '?(?P<library3>[\w.]+))",
        "A library or Python package is missing or of the wrong version: {library}.",
        "Install the engine's own requirements into its own environment.",
    ),
    _row(
        FailureClass.MISSING_BINARY,
        r"cannot execute binary file|Exec format error|cannot execute: required file not found",
        "The engine's program is not one that this machine can run.",
        "Use a build for this processor and system.",
    ),
    _row(
        FailureClass.ILLEGAL_INSTRUCTION,
        r"Illegal instruction",
        "The engine was built for another processor than this one (illegal instruction).",
        "Use a build for this processor, or one that chooses its code at run time.",
    ),
)

# Lines that only say that something failed: used where nothing above matches.
SYMPTOMS: tuple[FailureRow, ...] = (
    _row(
        FailureClass.UNSUPPORTED_ARCHITECTURE,
        r"Model architectures \[(?P<arch>[^\]]{0,200})\] failed to be inspected",
        "vLLM could not load its code for the model's architecture {arch}.",
        f"The lines before say why. {_NEXT_BACKEND}",
    ),
    _row(
        FailureClass.CRASHED,
        r"(?P<who>Engine core proc \S+|Worker proc \S+) died unexpectedly"
        r"|(?P<who2>EngineCore) encountered|EngineDeadError|(?P<who3>Engine core) initialization failed",
        "A worker of the engine died and took the engine along ({who}).",
        "The worker left no reason. If the node was short of memory, see its kernel log.",
    ),
    _row(
        FailureClass.BAD_MODEL_FILE,
        r"error loading model: |failed to load model|exiting due to model loading error",
        "The engine could not load the model.",
        _CHECK_FILE,
    ),
)

# Deaths whose signal says more than any line before it. Who is told to end has said nothing of it.
SIGNALS_BEFORE_LINES: dict[int, tuple[FailureClass, str, str]] = {
    signal.SIGILL: (
        FailureClass.ILLEGAL_INSTRUCTION,
        "The engine was built for another processor than this one (illegal instruction).",
        "Use a build for this processor, or one that chooses its code at run time.",
    ),
    signal.SIGTERM: (
        FailureClass.KILLED,
        "The engine was told to end (SIGTERM) by someone else.",
        "See who ends processes on this node: an operator, the service manager, the container runtime.",
    ),
}

# vLLM 0.7 and 0.8 kill themselves when a worker has failed.
KILLS_ITSELF = re.compile("Got fatal signal from worker processes, shutting down")

# Deaths that lines of these classes alone can explain: an engine that is killed has survived all others.
CLASSES_BEFORE_SIGNALS: dict[int, frozenset[FailureClass]] = {
    signal.SIGKILL: frozenset({FailureClass.OUT_OF_MEMORY, FailureClass.GPU_PAGE_FAULT}),
}

# Deaths by signal that no line explains.
SIGNALS: dict[int, tuple[FailureClass, str, str]] = {
    signal.SIGKILL: (
        FailureClass.KILLED,
        "The engine was killed from outside (SIGKILL), most likely by the kernel because memory ran out.",
        "See the node's kernel log for the out-of-memory killer; give the engine less to hold, or more RAM.",
    ),
    signal.SIGSEGV: (
        FailureClass.CRASHED,
        "The engine touched memory that is not its own (segmentation fault).",
        f"A fault of the engine or of the GPU driver. {_NEXT_BACKEND}",
    ),
    signal.SIGBUS: (
        FailureClass.CRASHED,
        "The engine lost memory that was mapped from a file (bus error).",
        "Typical of a full /dev/shm, or of a model file that was cut or replaced while in use.",
    ),
    signal.SIGABRT: (
        FailureClass.CRASHED,
        "The engine gave up on an error of its own (abort).",
        "The lines before the end say where.",
    ),
}

# What shells and dynamic loaders answer with.
EXIT_CODES: dict[int, tuple[FailureClass, str, str]] = {
    126: (
        FailureClass.MISSING_BINARY,
        "The engine's command exists but cannot be executed (exit code 126).",
        "Check its permissions and that it is built for this processor.",
    ),
    127: (
        FailureClass.MISSING_BINARY,
        "The engine's command was not found, or lacks a library (exit code 127).",
        "Check the command and its libraries (ldd).",
    ),
}
