"""Whether llama-cpp-python can compute here, tried in a process of its own, since a failure may be a signal.

    python -m xgen_ray.backends.llama_cpp_trial MODEL

Imports the package with its server, loads MODEL and computes one token. Exit code 0: it can.
"""

import sys


def main(model: str) -> int:
    import llama_cpp
    import llama_cpp.server.app

    print(f"version: {llama_cpp.__version__}", flush=True)  # noqa: T201  # read by whoever started this
    llama = llama_cpp.Llama(model, n_ctx=64, n_batch=32, n_threads=1, n_threads_batch=1, n_gpu_layers=0)
    llama.eval(llama.tokenize(b"Hi"))
    llama.sample()
    llama.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
