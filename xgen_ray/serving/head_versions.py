"""What versions a cluster's head runs, asked without joining it.

Ray's client may wait for minutes and ends its process on some errors, so it runs in a child: this module is
the program too, and prints one JSON object for an address.
"""

import asyncio
import importlib
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from xgen_ray.backends.probe import ask as run

_MODE = "RAY_AUTH_MODE"
_MAX_WORDS = 300


@dataclass(frozen=True, slots=True)
class HeadVersions:
    """Ray's and Python's versions on the head, or in ``problem`` why they are not known.

    ``refused``: the head wants another token than it was given, or one at all.
    """

    ray: str | None = None
    python: str | None = None
    problem: str | None = None
    refused: bool = False


async def ask_head(address: str, env: Mapping[str, str], deadline_s: float = 15.0) -> HeadVersions:
    """The versions of the head at ``address``, HOST:PORT as for ``ray start --address``.

    ``env`` is the child's environment: Ray's token is found through it. Takes ``deadline_s`` for each of
    connecting, asking, and asking again with the user's token where Ray was not told to use it.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return HeadVersions(problem="an address is HOST:PORT, the port of Ray's head (6379 by default)")
    try:
        async with asyncio.timeout(deadline_s):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except TimeoutError:
        return HeadVersions(problem=f"no connection within {deadline_s:g} s")
    except (OSError, OverflowError) as error:
        return HeadVersions(problem=f"no connection: {error}")
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    told = await _ask_in_child(address, env, deadline_s)
    if told.refused and env.get(_MODE) != "token":
        return await _ask_in_child(address, {**env, _MODE: "token"}, deadline_s)
    return told


async def _ask_in_child(address: str, env: Mapping[str, str], deadline_s: float) -> HeadVersions:
    # Not __name__: the child's own is __main__.
    command = [sys.executable, "-P", "-m", "xgen_ray.serving.head_versions"]
    answer = await run(command, [address], env, deadline_s)
    for line in reversed(answer.lines):
        with suppress(ValueError, TypeError):
            return HeadVersions(**json.loads(line))
    return HeadVersions(problem=f"it listens, but has not answered as Ray's head does in {deadline_s:g} s")


def _ask(address: str) -> HeadVersions:
    """What every joining node is held against, from the head's own record."""
    import ray.exceptions
    from ray._common.usage import usage_lib

    # The compiled module's stub does not name it.
    client: Any = importlib.import_module("ray._raylet")
    try:
        metadata = usage_lib.get_cluster_metadata(client.GcsClient(address=address))
        return HeadVersions(str(metadata["ray_version"]), str(metadata["python_version"]))
    except ray.exceptions.AuthenticationError:
        places = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token"
        return HeadVersions(problem=f"Ray's token here ({places}) is missing or not its", refused=True)
    except Exception as error:  # noqa: BLE001 - Ray's client raises whatever gRPC and its own C++ code do
        said = str(error).strip().partition("\n")[0][:_MAX_WORDS]
        return HeadVersions(problem=f"Ray's client says {type(error).__name__}: {said}")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_ask(sys.argv[1]))) + "\n")
