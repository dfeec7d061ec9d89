"""The stand-in engine dressed as llama-server: the real one's flags and answers about itself, no computing.

    xgen-ray up --engine 'llama-server-cpu=python tests/fakes/llama_server.py'

As a build for GPUs it is started with ``--lists`` and what ``--list-devices`` shall say ("ROCm0: AMD
Radeon"). With ``--script FOLDER --build NAME`` it misbehaves as ``FOLDER/MODEL.json`` says, a mapping from
builds to what is added to the stand-in engine's arguments, start by start; the last one holds for all
further starts. Every start of a model leaves a line in ``FOLDER/starts``.
"""

import argparse
import json
import os
import sys
from pathlib import Path

QUESTIONS = {"--help", "-h", "--version", "--list-devices"}
REPOSITORY = Path(__file__).parents[2]


def main() -> None:
    """Questions go to the bundled llama-server; everything else starts the stand-in."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--lists", action="append", default=[])
    parser.add_argument("--script", type=Path)
    parser.add_argument("--build", default="")
    own, arguments = parser.parse_known_args()
    if "--list-devices" in arguments and own.lists:
        print("Available devices:", *(f"  {device}" for device in own.lists), sep="\n")
        return
    if QUESTIONS & set(arguments):
        program = ["-m", "xgen_ray.backends.bundled_llama_server"]
    else:
        program = [str(REPOSITORY / "tests" / "fakes" / "engine.py")]
        if key := os.environ.get("LLAMA_API_KEY"):
            program += ["--api-key", key]
        # A switch there, a number here.
        arguments = [argument for argument in arguments if argument != "--slots"]
        if own.script is not None:
            arguments += scripted(own.script, own.build, arguments)
    os.execv(sys.executable, [sys.executable, *program, *arguments])


def scripted(folder: Path, build: str, arguments: list[str]) -> list[str]:
    """What this start is told to do. The process keeps its id when it becomes the engine."""
    model = arguments[arguments.index("--alias") + 1]
    starts = folder / "starts"
    earlier = [json.loads(line) for line in starts.read_text().splitlines()] if starts.exists() else []
    count = sum(start["model"] == model and start["build"] == build for start in earlier)
    line = {"model": model, "build": build, "pid": os.getpid(), "arguments": arguments}
    with starts.open("a") as file:
        file.write(json.dumps(line) + "\n")
    script = folder / f"{model}.json"
    runs: list[list[str]] = json.loads(script.read_text()).get(build, [[]]) if script.exists() else [[]]
    return runs[min(count, len(runs) - 1)]


if __name__ == "__main__":
    main()
