"""Looking at this node: everything that the checks judge, each look with a deadline of its own.

Nothing here decides. What cannot be read is None or a ``problem``, never an error.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from xgen_ray.backends import discover
from xgen_ray.doctor.devices import read_device_files, read_pci_gpus
from xgen_ray.doctor.facts import Head, NodeFacts
from xgen_ray.doctor.network import ask_hub, read_clock
from xgen_ray.doctor.programs import read_versions, try_haproxy
from xgen_ray.doctor.system import read_disk, read_limits, read_processor, user_name
from xgen_ray.hardware import detect_in_child
from xgen_ray.placement.types import Backend

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Questions:
    """What to look at, and how long it may take.

    ``env`` is what vendor libraries and engines are started with; ``commands`` are engines that are not to
    be searched for. ``peer_url`` is an HTTP server whose clock this node's is compared with;
    ``hub_endpoint`` is asked only where it is given. ``root`` is where ``/dev``, ``/proc`` and ``/sys`` are.
    """

    env: Mapping[str, str]
    cache_dir: Path
    state_dir: Path
    temp_dir: Path
    commands: Mapping[Backend, Sequence[str]] = field(default_factory=dict)
    peer_url: str | None = None
    hub_endpoint: str | None = None
    timeout_s: float = 10.0
    root: Path = Path("/")


async def gather(questions: Questions, head: Coroutine[None, None, Head] | None = None) -> NodeFacts:
    """The facts of this node, looked at all at once. ``head`` finds out about the cluster's head, if there
    is one: only Ray can ask it, so the caller does.
    """
    root, timeout_s, env = questions.root, questions.timeout_s, questions.env
    hub = ask_hub(questions.hub_endpoint, timeout_s) if questions.hub_endpoint else None
    async with asyncio.TaskGroup() as looks:
        snapshot = looks.create_task(asyncio.to_thread(detect_in_child, env=env, deadline_s=timeout_s))
        statuses = looks.create_task(
            discover(
                path=env.get("PATH", ""), commands=questions.commands, cache_dir=questions.cache_dir, env=env
            )
        )
        clock = looks.create_task(read_clock(questions.peer_url, timeout_s))
        haproxy = looks.create_task(try_haproxy(env, timeout_s))
        answered = looks.create_task(_if_asked(hub))
        told = looks.create_task(_if_asked(head))
    return NodeFacts(
        snapshot=snapshot.result(),
        statuses=statuses.result(),
        user=user_name(),
        pci_gpus=read_pci_gpus(root),
        device_files=read_device_files(root),
        limits=read_limits(root),
        processor=read_processor(root),
        disks=(
            read_disk("cache", questions.cache_dir),
            read_disk("state", questions.state_dir),
            read_disk("shared memory", root / "dev/shm"),
            read_disk("temporary files", questions.temp_dir),
        ),
        versions=read_versions(),
        clock=clock.result(),
        haproxy=haproxy.result(),
        head=told.result(),
        hub=answered.result(),
        named=frozenset(questions.commands),
    )


async def _if_asked(look: Coroutine[None, None, T] | None) -> T | None:
    return None if look is None else await look
