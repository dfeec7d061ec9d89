"""The stand-in engine dressed as vLLM's server: the real one's flags, log lines and way to die."""

import os
import re
import sys
from pathlib import Path

from vllm import WORDS

HELP = Path(__file__).parents[2] / "help.txt"
ENGINE = Path(__file__).parents[5] / "fakes" / "engine.py"
LOADING = (
    "(EngineCore pid=7) INFO [core.py:123] Initializing a V1 LLM engine (v0.29.0) with config: warmup=True",
    "(Worker pid=8) Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00,  1.02it/s]",
    "(Worker pid=8) INFO [default_loader.py:430] Loading weights took 0.99 seconds",
    "(EngineCore pid=7) INFO [kv_cache_utils.py:2032] GPU KV cache size: 46,592 tokens",
    "(APIServer pid=6) INFO [entry.py:139] Starting vLLM server on http://127.0.0.1",
)
WORKER_DIED = (
    "(EngineCore pid=7) ERROR [multiproc_executor.py:261] Worker proc VllmWorker-0 died unexpectedly, bye.",
    "(APIServer pid=6) INFO:     Application shutdown complete.",
)


def main(argv: list[str]) -> None:
    if "--help=all" in argv and "old-help" not in WORDS:
        print(HELP.read_text())
        return
    if "--help" in argv:
        print(HELP.read_text() if "old-help" in WORDS else "usage: api_server.py [-h]\n  Frontend\n")
        return
    known = set(re.findall(r"--[A-Za-z][\w-]*", HELP.read_text()))
    strangers = [word for word in argv if word.startswith("--") and word not in known]
    if strangers or "--help=all" in argv:
        print(f"api_server.py: error: unrecognized arguments: {' '.join(strangers)}", file=sys.stderr)
        sys.exit(2)
    if "crash" in WORDS:
        print(*LOADING, *WORKER_DIED, sep="\n", flush=True)
        sys.exit(0)
    said = [word for line in LOADING for word in ("--print", line)]
    deaf = ["--ignore-term"] if "deaf" in WORDS else []
    key = os.environ.get("VLLM_API_KEY", "")
    os.execv(sys.executable, [sys.executable, str(ENGINE), "--api-key", key, *said, *deaf, *_own(argv)])


def _own(argv: list[str]) -> list[str]:
    """vLLM's arguments in the stand-in's words; what it does not know it keeps and shows."""
    return ["--slots" if word == "--max-num-seqs" else word for word in argv]


if __name__ == "__main__":
    main(sys.argv[1:])
