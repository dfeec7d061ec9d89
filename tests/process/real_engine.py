"""llama.cpp's own HTTP server, from the prebuilt wheel: ``python real_engine.py MODEL PORT``."""

import signal
import sys
import threading

import xllamacpp


def main() -> None:
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    parameters = xllamacpp.CommonParams()
    parameters.model.path = sys.argv[1]
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = int(sys.argv[2])
    parameters.n_ctx = 256
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    ended.wait()
    del server


if __name__ == "__main__":
    main()
