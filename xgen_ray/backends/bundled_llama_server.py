"""llama.cpp's HTTP server from the prebuilt ``xllamacpp`` wheel, with ``llama-server``'s command line.

    python -m xgen_ray.backends.bundled_llama_server -m FILE --port N ...

The engine of a node where nobody has installed a ``llama-server``: the same C++ server, so the same
routes, log lines and exit codes. 0: asked to stop. 1: a bad flag, a bad model file, a port in use; what
was wrong is on stderr, in llama.cpp's words.
"""

import hashlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Never

from xgen_ray.backends.bundled_flags import FLAGS, BadFlag, apply, help_text, parse

DEFAULT_PORT = 8080


def main(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run the program; returns only when nothing was served. ``env`` is the process's own environment."""
    for name in argv:
        if name in ("-h", "--help", "--usage"):
            print(help_text())  # noqa: T201  # it is what the flag asks for
            return 0
        if name == "--version":
            _say(_version())
            return 0
        if name == "--list-devices":
            print("\n".join(["Available devices:", *(_devices() or ["  (none)"])]))  # noqa: T201  # likewise
            return 0
    try:
        server = _start(argv, env)
    except BadFlag as error:
        _say(str(error))
        return 1
    except RuntimeError as error:
        # The library has logged the cause already.
        _say(f"error: {error}")
        return 1
    return _serve_until_told(server)


def _start(argv: Sequence[str], env: Mapping[str, str]) -> Any:
    """Load the model and listen. Until this returns SIGTERM ends the process at once, as it should."""
    given = parse(argv)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.port = DEFAULT_PORT
    for flag in FLAGS:
        if flag.env is not None and env.get(flag.env):
            apply(params, flag, flag.env, env[flag.env])
    for flag, written, value in given:
        apply(params, flag, written, value)
    if not params.model.path:
        raise BadFlag("error: --model is required: this server has no router mode")
    if params.cpuparams_batch.n_threads < 0:
        params.cpuparams_batch.n_threads = params.cpuparams.n_threads
    return xllamacpp.Server(params)


def _serve_until_told(server: Any) -> Never:
    """Wait for SIGTERM or SIGINT, then leave with 0 without waiting for streams in flight."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    # The pipe is written whichever thread takes the signal, so the wait below needs no polling.
    signal.set_wakeup_fd(write_end)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    _say(f"serving on {server.listening_address}")
    os.read(read_end, 1)
    _say("stopping")
    # Its destructor joins threads that a stuck client can hold up.
    os._exit(0)


def _version() -> str:
    """Answers of a build are kept for as long as its version is the same: our own flags are a part of it."""
    import xllamacpp

    build = xllamacpp.BUILD_INFO
    flags = hashlib.sha256(help_text().encode()).hexdigest()[:8]
    return (
        f"version: {xllamacpp.__version__} (bundled: xllamacpp, flags {flags})\n"
        f"built with {build['compiler']} for {build['build_target']}"
    )


def _devices() -> list[str]:
    import xllamacpp

    return [
        f"  {device['name']}: {device['description']} "
        f"({device['memory_total'] >> 20} MiB, {device['memory_free'] >> 20} MiB free)"
        for device in xllamacpp.get_device_info()
        if device["type"] != xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU
    ]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201  # stderr is this program's log


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:], os.environ))
    except ImportError as error:
        _say(f"error: the Python package xllamacpp cannot be loaded: {error}")
        sys.exit(1)
