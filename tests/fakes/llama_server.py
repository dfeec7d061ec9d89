"""The stand-in engine dressed as llama-server: the real one's flags and answers about itself, no computing.

xgen-ray up --engine 'llama-server-cpu=python tests/fakes/llama_server.py'
"""

import os
import sys
from pathlib import Path

QUESTIONS = {"--help", "-h", "--version", "--list-devices"}
REPOSITORY = Path(__file__).parents[2]


def main() -> None:
    """Questions go to the bundled llama-server; everything else starts the stand-in."""
    arguments = sys.argv[1:]
    if QUESTIONS & set(arguments):
        program = ["-m", "xgen_ray.backends.bundled_llama_server"]
    else:
        program = [str(REPOSITORY / "tests" / "fakes" / "engine.py")]
        if key := os.environ.get("LLAMA_API_KEY"):
            program += ["--api-key", key]
        # A switch there, a number here.
        arguments = [argument for argument in arguments if argument != "--slots"]
    os.execv(sys.executable, [sys.executable, *program, *arguments])


if __name__ == "__main__":
    main()
