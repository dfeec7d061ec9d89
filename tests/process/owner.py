"""An owner to be killed: starts four children, each with a grandchild, tells all ids, and waits.

It also starts two bystanders that live on: one as any library might, and one by a bare fork, which
holds a copy of every descriptor of the owner's.

The last line of its output is ``{"families": [[child, grandchild, guard, keeper], ...], "bystanders": []}``.
"""

import asyncio
import json
import os
import subprocess
import sys
import time

from tests.process.watching import eventually, guards_of
from xgen_ray.process import ChildProcess, LaunchSpec

FAMILIES = 4
# The grandchild is in a session of its own and deaf to TERM. The child tells its id.
CHILD = """
import os, signal, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = os.fork()
if grandchild == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    print(grandchild, flush=True)
time.sleep(60)
"""


def start_bystanders() -> list[int]:
    popen = subprocess.Popen(["sleep", "60"], start_new_session=True)
    told, tell = os.pipe()
    forked = os.fork()
    if forked == 0:
        os.setsid()
        os.write(tell, b".")
        time.sleep(60)
        os._exit(0)
    os.read(told, 1)  # it has left the group that may be killed
    return [popen.pid, forked]


async def family(number: int) -> list[int]:
    """Start one child, the second of them deaf to TERM; its processes' ids."""
    argv = (sys.executable, "-I", "-S", "-c", CHILD, "deaf" if number == 1 else "")
    child = ChildProcess(LaunchSpec(argv), base_env=dict(os.environ))
    await child.start()
    await eventually(lambda: bool(child.logs.tail()))
    assert child.pid is not None
    return [child.pid, int(child.logs.tail()[0]), *guards_of(child.pid)]


async def own() -> None:
    families = await asyncio.gather(*map(family, range(FAMILIES)))
    print(json.dumps({"families": families, "bystanders": start_bystanders()}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(own())
