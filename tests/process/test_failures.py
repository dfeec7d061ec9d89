"""Diagnosis of deaths: what engines really print, and properties that hold for anything."""

import errno
import re
import signal
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgen_ray.process import FailureClass, classify
from xgen_ray.process.failure_rows import CAUSES, SYMPTOMS
from xgen_ray.process.failures import not_ready_in_time, not_started, unkillable
from xgen_ray.process.logs import LogRing

F = FailureClass

# What llama.cpp says after the line that counts.
LOAD_TAIL = """
0.00.061 E llama_model_load_from_file_impl: failed to load model
0.00.061 E cmn  common_init_: failed to load model '/models/x.gguf'
0.00.061 E srv    load_model: failed to load model, '/models/x.gguf'
0.00.061 I srv    operator(): operator(): cleaning up before exit...
0.00.062 E srv          init: exiting due to model loading error
"""

# What vLLM says after the exception that counts.
VLLM_TAIL = """
(EngineCore_DP0 pid=17374) Process EngineCore_DP0:
(EngineCore_DP0 pid=17374) Traceback (most recent call last):
(EngineCore_DP0 pid=17374)   File "/usr/lib/python3.12/multiprocessing/process.py", line 314, in _bootstrap
(APIServer pid=1) Traceback (most recent call last):
(APIServer pid=1)   File "/usr/local/bin/vllm", line 10, in <module>
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""

# Columns: exit code, output, class, a part of the evidence, words of the message. [real]: printed by
# the real thing on a development machine; the others are from the projects' issues and sources.
CASES = [
    # llama.cpp [real]
    (
        1,
        "0.00.008 E gguf_init_from_file: failed to open GGUF file '/nope.gguf' (No such file or directory)"
        "\n0.00.008 E llama_model_load: error loading model: llama_model_loader: failed to load model from /nope.gguf"
        + LOAD_TAIL,
        F.BAD_MODEL_FILE,
        "failed to open",
        "/nope.gguf cannot be opened",
    ),
    (
        1,
        "0.00.007 E gguf_init_from_reader: invalid magic characters: 'Q??O', expected 'GGUF'" + LOAD_TAIL,
        F.BAD_MODEL_FILE,
        "invalid magic",
        "not a GGUF file",
    ),
    (
        1,
        "0.00.020 E gguf_init_from_reader: failed to read magic" + LOAD_TAIL,
        F.BAD_MODEL_FILE,
        "failed to read magic",
        "not a GGUF file",
    ),
    (
        1,
        "0.00.037 E common_fit_params: encountered an error while trying to fit params to free device memory: "
        "failed to load model\n0.00.060 E llama_model_load: error loading model: tensor 'token_embd.weight' data "
        "is not within the file bounds, model is corrupted or incomplete" + LOAD_TAIL,
        F.BAD_MODEL_FILE,
        "within the file bounds",
        "damaged or incomplete",
    ),
    (
        1,
        "0.00.150 E llama_model_load: error loading model: unknown model architecture: 'xlama'" + LOAD_TAIL,
        F.UNSUPPORTED_ARCHITECTURE,
        "unknown model architecture",
        "architecture xlama.",
    ),
    (
        1,
        "0.00.004 E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 18082\n"
        "0.00.004 I srv    operator(): operator(): cleaning up before exit...\n"
        "0.00.004 E srv          init: exiting due to HTTP server error",
        F.PORT_IN_USE,
        "port: 18082",
        "could not listen",
    ),
    (
        1,
        "0.25.130 E ggml_backend_buft_alloc_buffer_n_default: failed to allocate CPU buffer of size 2304000000000\n"
        "0.25.548 E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache\n"
        "0.25.548 E cmn  common_init_: failed to create context with model '/m.gguf'\n"
        "0.25.549 E srv          init: exiting due to model loading error",
        F.OUT_OF_MEMORY,
        "kv cache",
        "not the cache",
    ),
    (1, "error: invalid argument: --mlock", F.UNKNOWN_FLAG, "--mlock", "option --mlock."),
    (
        1,
        "error while handling argument \"--flash-attn\": unknown value '--temp'\n\nusage:",
        F.UNKNOWN_FLAG,
        "flash-attn",
        "option --flash-attn.",
    ),
    (
        1,
        'error while handling argument "--device": invalid device: Vulkan0',
        F.DEVICE_MISSING,
        "invalid device",
        "device Vulkan0.",
    ),
    # GPUs
    (
        -6,
        "slot update_slots: id 0 | task 0 | prompt processing\nMemory access fault by GPU node-1 (Agent handle: "
        "0x55c2bca3a160) on address 0x7fe03c665000. Reason: Page not present or supervisor privilege.\n"
        "Failed to write segment data to pipe: Broken pipe\nGPU coredump: handler exited with error (status: 1)",
        F.GPU_PAGE_FAULT,
        "GPU node-1",
        "page fault",
    ),
    (
        139,
        "[error] GPU page fault detected\n[error] Memory access violation at address 0x7f8a00000000\n"
        "Segmentation fault (core dumped)",
        F.GPU_PAGE_FAULT,
        "page fault detected",
        "page fault",
    ),
    (
        -6,
        "CUDA error: an illegal memory access was encountered\n  current device: 0, in function "
        "ggml_backend_cuda_synchronize at ggml-cuda.cu:2413",
        F.GPU_PAGE_FAULT,
        "illegal memory access",
        "page fault",
    ),
    (
        -6,
        "terminate called after throwing an instance of 'vk::DeviceLostError'\n"
        "  what():  vk::Queue::submit: ErrorDeviceLost",
        F.GPU_PAGE_FAULT,
        "ErrorDeviceLost",
        "stopped working",
    ),
    (
        -6,
        "HW Exception by GPU node-1 (Agent handle: 0x1) reason :GPU Hang",
        F.GPU_PAGE_FAULT,
        "GPU Hang",
        "hang",
    ),
    (
        1,
        "ggml_vulkan: Device memory allocation of size 118497280 failed.\n"
        "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory\n"
        "llama_model_load: error loading model: unable to allocate Vulkan0 buffer" + LOAD_TAIL,
        F.OUT_OF_MEMORY,
        "Vulkan0 buffer",
        "GPU ran out",
    ),
    (
        1,
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 20000.00 MiB on device 0: cudaMalloc failed: "
        "out of memory\nalloc_tensor_range: failed to allocate CUDA0 buffer of size 20971520000" + LOAD_TAIL,
        F.OUT_OF_MEMORY,
        "CUDA0 buffer",
        "GPU ran out",
    ),
    (-6, "CUDA error: out of memory", F.OUT_OF_MEMORY, "CUDA error", "GPU ran out"),
    (-6, "ROCm error: out of memory", F.OUT_OF_MEMORY, "ROCm error", "GPU ran out"),
    (
        1,
        "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
        "15.92 GiB" + VLLM_TAIL,
        F.OUT_OF_MEMORY,
        "HIP out of memory",
        "GPU ran out",
    ),
    (
        1,
        'Unable to open /dev/kfd read-write: Permission denied\nroot is not member of "render" group',
        F.DEVICE_PERMISSION,
        "/dev/kfd",
        "device file /dev/kfd.",
    ),
    (
        1,
        "amdgpu: Failed to open /dev/dri/renderD128: Permission denied",
        F.DEVICE_PERMISSION,
        "renderD128",
        "/dev/dri/renderD128.",
    ),
    (
        1,
        "PermissionError: [Errno 13] Permission denied: '/dev/nvidiactl'",
        F.DEVICE_PERMISSION,
        "nvidiactl",
        "/dev/nvidiactl.",
    ),
    (
        -6,
        "rocBLAS error: Cannot read /opt/rocm-5.7.0/lib/rocblas/library/TensileLibrary.dat: Illegal seek for GPU "
        "arch : gfx1103\n List of available TensileLibrary Files : ",
        F.UNSUPPORTED_ARCHITECTURE,
        "gfx1103",
        "this GPU gfx1103.",
    ),
    (
        -6,
        "CUDA error: no kernel image is available for execution on the device",
        F.UNSUPPORTED_ARCHITECTURE,
        "no kernel image",
        "this GPU.",
    ),
    (-6, "ROCm error: invalid device function", F.UNSUPPORTED_ARCHITECTURE, "device function", "this GPU."),
    (
        1,
        "rocBLAS error: Could not initialize Tensile host: No devices found",
        F.DEVICE_MISSING,
        "No devices found",
        "no GPU",
    ),
    # vLLM
    (
        1,
        "(EngineCore_DP0 pid=17374) ERROR 09-28 15:47:24 [core.py:718] ValueError: Free memory on device cuda:0 "
        "(3.22/4.0 GiB) on startup is less than desired GPU memory utilization (0.9, 3.6 GiB). Decrease GPU memory "
        "utilization or reduce GPU memory used by other processes." + VLLM_TAIL,
        F.OUT_OF_MEMORY,
        "Free memory",
        "3.22 of 4.0 GiB free, and vLLM was told to take 3.6 GiB",
    ),
    (
        1,
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
        "initializing the engine." + VLLM_TAIL,
        F.OUT_OF_MEMORY,
        "cache blocks",
        "not the cache",
    ),
    (
        1,
        "ValueError: To serve at least one request with the models's max seq len (131072), (16.00 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (1.23 GiB)." + VLLM_TAIL,
        F.OUT_OF_MEMORY,
        "131072",
        "not the cache",
    ),
    (
        1,
        "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or "
        "'namespace/repo_name': '/no/such/model'." + VLLM_TAIL,
        F.BAD_MODEL_FILE,
        "HFValidationError",
        "neither a folder",
    ),
    (
        1,
        "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer"
        + VLLM_TAIL,
        F.BAD_MODEL_FILE,
        "SafetensorError",
        "damaged or incomplete",
    ),
    (
        1,
        "(APIServer pid=3) Value error, Model architectures ['DeepseekOCRForCausalLM'] are not supported for now. "
        "Supported architectures: dict_keys(['ApertusForCausalLM', 'AquilaModel'])",
        F.UNSUPPORTED_ARCHITECTURE,
        "DeepseekOCR",
        "'DeepseekOCRForCausalLM'",
    ),
    (
        0,
        "(EngineCore pid=1709) ERROR 06-01 17:32:04 [multiproc_executor.py:283] Worker proc VllmWorker-0 died "
        "unexpectedly, shutting down executor.\n(APIServer pid=1) INFO:     Application shutdown complete.\n"
        "(APIServer pid=1) INFO:     Finished server process [1]",
        F.CRASHED,
        "VllmWorker-0",
        "(Worker proc VllmWorker-0). It then ended with exit code 0",
    ),
    (
        0,
        "(EngineCore pid=1) RuntimeError: CUDA error: an illegal memory access was encountered\n(APIServer pid=2) "
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above)",
        F.GPU_PAGE_FAULT,
        "illegal memory access",
        "exit code 0",
    ),
    (
        1,
        "OSError: [Errno 98] Address already in use",
        F.PORT_IN_USE,
        "Errno 98",
        "could not listen",
    ),
    (
        1,
        "[Errno 98] error while attempting to bind on address ('127.0.0.1', 41509): address already in use",
        F.PORT_IN_USE,
        "41509",
        "could not listen",
    ),  # [real]
    (
        1,
        "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG`",
        F.DEVICE_MISSING,
        "infer device",
        "no GPU",
    ),
    # argparse, the dynamic loader, shells [real]
    (
        2,
        "usage: api_server.py [-h] [--dtype {a}]\napi_server.py: error: unrecognized arguments: --foo",
        F.UNKNOWN_FLAG,
        "--foo",
        "option --foo.",
    ),
    (
        2,
        "api_server.py: error: argument --dtype: invalid choice: 'b' (choose from 'a')",
        F.UNKNOWN_FLAG,
        "--dtype",
        "option --dtype.",
    ),
    (
        127,
        "./needlib: error while loading shared libraries: libfoo.so: cannot open shared object file: No such file "
        "or directory",
        F.MISSING_LIBRARY,
        "libfoo.so",
        "missing: libfoo.so.",
    ),
    (
        1,
        "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
        F.MISSING_LIBRARY,
        "libcudart",
        "missing: libcudart.so.12.",
    ),
    (
        1,
        "./v2: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.99' not found (required by ./v2)",
        F.MISSING_LIBRARY,
        "GLIBC_2.99",
        "needs GLIBC_2.99.",
    ),
    (
        1,
        "/usr/bin/python3: Error while finding module specification for 'vllm.entrypoints.openai.api_server' "
        "(ModuleNotFoundError: No module named 'vllm')",
        F.MISSING_LIBRARY,
        "No module",
        "version: vllm.",
    ),
    (
        126,
        "bash: ./arm: cannot execute binary file: Exec format error",
        F.MISSING_BINARY,
        "Exec format",
        "this machine can run",
    ),
    (
        132,
        "bash: line 1: 12144 Illegal instruction     ./trap",
        F.ILLEGAL_INSTRUCTION,
        "Illegal",
        "another processor",
    ),
    # nothing but a code
    (-4, "", F.ILLEGAL_INSTRUCTION, None, "another processor"),
    (132, "", F.ILLEGAL_INSTRUCTION, None, "another processor"),
    (-9, "llama_context: n_ctx = 4096", F.KILLED, "n_ctx", "SIGKILL"),
    (137, "", F.KILLED, None, "SIGKILL"),
    (-15, "", F.KILLED, None, "SIGTERM"),
    (-11, "loading", F.CRASHED, "loading", "segmentation fault"),
    (-7, "", F.CRASHED, None, "bus error"),
    (-6, "", F.CRASHED, None, "abort"),
    (126, "", F.MISSING_BINARY, None, "126"),
    (127, "", F.MISSING_BINARY, None, "127"),
    (-31, "", F.CRASHED, None, "SIGSYS"),
    (
        42,
        "a line\nthe last line\n\n",
        F.CRASHED,
        "the last line",
        "exit code 42). It last said: the last line",
    ),
    (0, "", F.CRASHED, None, "exit code 0). It printed nothing."),
    (None, "", F.CRASHED, None, "no exit code"),
]


@pytest.mark.parametrize(
    ("exit_code", "output", "failure", "evidence", "words"),
    CASES,
    ids=[f"{case[2].value}-{case[0]}-{number}" for number, case in enumerate(CASES)],
)
def test_real_deaths(
    exit_code: int | None, output: str, failure: FailureClass, evidence: str | None, words: str
) -> None:
    lines = output.split("\n") if output else []
    found = classify(exit_code, lines)
    assert found.failure is failure
    assert words in found.message
    assert found.exit_code == exit_code
    assert found.advice
    if evidence is None:
        assert found.evidence is None
    else:
        assert found.evidence is not None
        assert evidence in found.evidence
        assert found.evidence in lines
    assert found.log_tail == tuple(lines[-40:])


def test_every_row_is_reached_by_a_real_text() -> None:
    texts = [line for _, output, *_ in CASES for line in output.split("\n")]
    unreached = [
        row.pattern.pattern
        for row in (*CAUSES, *SYMPTOMS)
        if not any(row.pattern.search(text) for text in texts)
    ]
    # A full disk and the processor's own memory are made up below.
    assert [pattern for pattern in unreached if "No space left" not in pattern] == []


@pytest.mark.parametrize("row", [*CAUSES, *SYMPTOMS], ids=lambda row: row.message[:40])
def test_a_rows_words_use_only_what_its_pattern_catches(row: object) -> None:
    fields = {name for _, name, _, _ in string.Formatter().parse(row.message) if name}  # type: ignore[attr-defined]  # parametrize hides the type
    groups = {name.rstrip("0123456789") for name in row.pattern.groupindex}  # type: ignore[attr-defined]  # same
    assert fields <= groups


def test_the_latest_cause_counts() -> None:
    """An engine goes on after a buffer that it could not get, and dies of something else."""
    lines = [
        "ggml_vulkan: Failed to allocate pinned memory.",
        "vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
    ]
    later = [*lines, "loaded", "couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 1"]
    assert classify(1, lines).failure is F.OUT_OF_MEMORY
    assert classify(1, later).failure is F.PORT_IN_USE


def test_an_old_line_explains_nothing() -> None:
    lines = ["CUDA error: out of memory", *(f"request {n} done" for n in range(500))]
    assert classify(-9, lines).failure is F.KILLED


def test_a_full_disk() -> None:
    found = classify(1, ["OSError: [Errno 28] No space left on device: '/psm_12'"])
    assert found.failure is F.CRASHED
    assert "/dev/shm" in found.message


@pytest.mark.parametrize("exit_code", [0, 1, -15, -9, None])
def test_what_was_asked_for_is_no_failure(exit_code: int | None) -> None:
    found = classify(exit_code, ["CUDA error: out of memory"], stopping=True)
    assert found.failure is F.STOPPED
    assert ("was killed" in found.message) == (exit_code == -9)


fragments = st.sampled_from([line for _, output, *_ in CASES for line in output.split("\n")])
anything = st.lists(st.one_of(st.text(max_size=100), fragments), max_size=30)
codes = st.one_of(st.none(), st.integers(-70, 300), st.integers())


@given(code=codes, lines=anything, stopping=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_death_gets_one_and_the_same_diagnosis(
    code: int | None, lines: list[str], stopping: bool
) -> None:
    found = classify(code, lines, stopping=stopping)
    assert found == classify(code, tuple(lines), stopping=stopping)
    assert (found.failure is F.STOPPED) == stopping
    assert found.message
    assert "{" not in re.sub(r"It last said: .*", "", found.message, flags=re.DOTALL) or "{" in "".join(lines)
    assert found.evidence is None or found.evidence in lines
    assert stopping or found.advice


@given(before=anything, cause=st.sampled_from(["CUDA error: out of memory", "error: invalid argument: --x"]))
@settings(max_examples=60, deadline=None)
def test_a_cause_in_the_last_line_wins(before: list[str], cause: str) -> None:
    assert classify(1, [*before, cause]) == classify(1, [*before, cause])
    assert classify(1, [*before, cause]).failure is classify(1, [cause]).failure


@given(
    secret=st.text(alphabet=string.ascii_letters + string.digits, min_size=12, max_size=30),
    place=st.sampled_from(
        ["CUDA out of memory {}", "error: invalid argument: --{}", "unknown model architecture: '{}'", "{}"]
    ),
    code=st.sampled_from([0, 1, -6, -9]),
)
@settings(max_examples=50, deadline=None)
def test_secrets_never_come_out(secret: str, place: str, code: int) -> None:
    ring = LogRing(secrets=[secret])
    ring.append(place.format(secret))
    assert secret not in repr(classify(code, ring.tail()))


def test_hostile_logs_take_no_time() -> None:
    """A classifier that hangs would hold up the recovery it is for."""
    hostile = [
        ("/dev/kfd" * 500)[:4096],
        "error: argument " * 256,
        "Free memory on device " * 180,
        "a" * 4096,
    ]
    before = time.perf_counter()
    classify(1, hostile * 100)
    assert time.perf_counter() - before < 5


def test_not_ready_in_time_tells_the_numbers() -> None:
    found = not_ready_in_time(120, "503 Loading model", ["loading tensors"])
    assert found.failure is F.NOT_READY_IN_TIME
    assert "120 s" in found.message
    assert "503 Loading model" in found.message
    assert found.evidence == "loading tensors"
    assert "never asked" in not_ready_in_time(1.5, None, []).message


@pytest.mark.parametrize(
    ("number", "exists", "words"),
    [
        (errno.ENOENT, False, "/bin/x was not found"),
        (errno.ENOENT, True, "interpreter"),
        (errno.EACCES, True, "may not be executed"),
        (errno.ENOEXEC, True, "not a program"),
        (errno.E2BIG, True, "E2BIG"),
        (None, True, "no error code"),
    ],
)
def test_programs_that_did_not_start(number: int | None, exists: bool, words: str) -> None:
    found = not_started("/bin/x", "exec", number, "text", exists=exists)
    assert found.failure is F.MISSING_BINARY
    assert words in found.message


def test_what_cannot_be_killed_keeps_its_cause() -> None:
    crash = classify(-signal.SIGSEGV, ["x"])
    found = unkillable(crash, [1, 2], 10.0)
    assert found.failure is crash.failure
    assert found.message.startswith(crash.message)
    assert "process 1, 2 for 10 s" in found.message
