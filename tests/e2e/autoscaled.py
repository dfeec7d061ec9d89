"""A cluster whose nodes come and go, in namespaces of its own: run by ``test_autoscaling``.

    unshare --pid --fork --net --mount --mount-proc python -m tests.e2e.autoscaled FOLDER

Prints one line of JSON for each thing that happens, with the seconds since the load was asked for, and ends
with whatever it had started, as process 1 of its namespace.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from deployments.app import control, router
from tests.e2e.fleet import Card, Machine, furnish
from tests.stack import REPOSITORY, SAMPLE_MODEL, Client, wait_until
from xgen_ray.settings import CONTROL_APP, ROUTER_APP, ControlSettings, RouterSettings

PORT = 8000
PATIENCE_S = 120.0
STORE = 80 * 2**20
RADEON = Card(
    "amd",
    "00ff1586-0000-1000-8000-0000000a0000",
    "name=AMD Radeon 8060S Graphics,gfx=1151,vram_mb=1024,gtt_mb=8192,bdf=0000:c1:00.0",
    "AMD Radeon 8060S Graphics (RADV GFX1151)",
    9216,
)
GEFORCE = Card(
    "nvidia",
    "GPU-40900000-0000-4000-8000-000000000000",
    "name=NVIDIA GeForce RTX 4090,memory_mb=24564,cc=8.9,bus=00000000:01:00.0,"
    "uuid=GPU-40900000-0000-4000-8000-000000000000",
    "NVIDIA GeForce RTX 4090",
    24564,
)
MACHINES = {
    "amd": Machine("amd", "", (RADEON,), {"llama-server-vulkan": ("Vulkan", 400, (RADEON,))}),
    "nvidia": Machine("nvidia", "", (GEFORCE,), {"llama-server-cuda": ("CUDA", 900, (GEFORCE,))}),
    "cpu": Machine("cpu", ""),
}
# What a cluster's configuration says of its node types, and what control is told of them.
NODE_TYPES: Mapping[str, dict[str, Any]] = {
    "amd": {
        "resources": {"CPU": 1, "amd_rdna": 1, "gfx1151": 1},
        "labels": {
            "xgen-ray/gpu-type": "amd_rdna",
            "xgen-ray/gfx": "gfx1151",
            "xgen-ray/gpu-memory": "8g",
            "xgen-ray/gpu-integrated": "true",
            "xgen-ray/ram": "16g",
            "xgen-ray/backend-llama-server-vulkan": "true",
        },
        "max_workers": 2,
    },
    "nvidia": {
        "resources": {"CPU": 1, "nvidia": 1, "sm_89": 1},
        "labels": {
            "xgen-ray/gpu-type": "nvidia",
            "xgen-ray/gpu-memory": "24g",
            "xgen-ray/ram": "16g",
            "xgen-ray/backend-llama-server-cuda": "true",
        },
        "max_workers": 2,
    },
    "cpu": {
        "resources": {"CPU": 1, "cpu_node": 1},
        "labels": {"xgen-ray/gpu-type": "cpu", "xgen-ray/ram": "16g"},
        "max_workers": 2,
    },
}


class Watch:
    """Prints what happens and when."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def tell(self, event: str, **more: object) -> None:
        print(json.dumps({"at": round(time.monotonic() - self.began, 1), "event": event, **more}), flush=True)


def cluster_config(folder: Path) -> dict[str, Any]:
    environments = {}
    for name, machine in MACHINES.items():
        (home := folder / name).mkdir()
        (launches := home / "launches").mkdir()
        environments[name] = furnish(machine, home, launches)
    types = {
        name: {
            "resources": {**kind["resources"], "object_store_memory": STORE},
            "labels": kind["labels"],
            "node_config": {},
            "min_workers": 0,
            "max_workers": kind["max_workers"],
        }
        for name, kind in NODE_TYPES.items()
    }
    head = {"resources": {"CPU": 1, "object_store_memory": STORE}, "node_config": {}, "max_workers": 0}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    lists = [f"{name}_commands" for name in commands] + [
        "cluster_synced_files",
        "rsync_exclude",
        "rsync_filter",
    ]
    return {
        "cluster_name": "fake_multinode",
        "max_workers": 8,
        "provider": {
            "type": "external",
            "module": "tests.fakes.fleet_provider.FleetProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "environments": environments,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {**types, "ray.head.default": head},
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1.0,
        "file_mounts_sync_continuously": False,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in lists},
    }


def start_head(folder: Path) -> None:
    path = folder / "cluster.json"
    path.write_text(json.dumps(cluster_config(folder)))
    os.environ |= {
        "PYTHONPATH": str(REPOSITORY),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_autoscaler_v2": "1",
    }
    # How Ray's own fake clusters are started; the autoscaler looks once a second instead of every five.
    environment = os.environ | {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    ray_command = str(Path(sys.executable).with_name("ray"))
    words = [ray_command, "start", "--head", f"--autoscaling-config={path}", "--num-cpus=1"]
    words += ["--port=6379", f"--object-store-memory={STORE}", "--include-dashboard=false"]
    subprocess.run(words, env=environment, check=True, stdout=sys.stderr)


def deploy(folder: Path) -> Client:
    client = Client(f"http://127.0.0.1:{PORT}")
    settings = ControlSettings.model_validate(
        {
            "base_url": client.url,
            "model_dirs": [str(SAMPLE_MODEL.parent)],
            "state_dir": str(folder / "state"),
            "cache_dir": str(folder / "cache"),
            "drain_s": 5.0,
            "node_types": NODE_TYPES,
        }
    )
    ray.init("auto", log_to_driver=False, configure_logging=False)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(control(settings), name=CONTROL_APP, route_prefix="/api")
    serve.run(router(RouterSettings(wait_s=120.0)), name=ROUTER_APP, route_prefix="/")
    return client


def started_types() -> list[str]:
    list_nodes: Callable[[], list[dict[str, Any]]] = ray.nodes
    labels = [node["Labels"] for node in list_nodes() if node["Alive"]]
    return sorted(kind for one in labels if (kind := one.get("ray.io/node-group", "")) in NODE_TYPES)


def run(folder: Path) -> None:
    start_head(folder)
    client = deploy(folder)
    watch = Watch()
    watch.tell("no node but the head", nodes=started_types())
    options = {"backend": "llama-server-vulkan", "context": 512, "slots": 1, "threads": 1}
    with ThreadPoolExecutor(1) as threads:
        load = threads.submit(client.load, SAMPLE_MODEL, name="small", options=options)

        def waits() -> dict[str, Any] | None:
            return (client.status("small") or {}).get("awaited_nodes")

        wait_until(lambda: waits() is not None, PATIENCE_S, "the model to wait for a node")
        status = client.status("small") or {}
        watch.tell("waits for a node", awaited=waits(), phase=status["phase"], reason=status["reason"])
        wait_until(lambda: started_types() != [], PATIENCE_S, "a node to join")
        watch.tell("a node has joined", nodes=started_types())
        answer = load.result(PATIENCE_S)
    assert answer.status_code == 200, answer.text
    engine = answer.json()["engines"][0]
    watch.tell("loaded", backend=engine["backend"], gpus=engine["gpus"], nodes=started_types())
    chat = client.chat("small")
    assert chat.status_code == 200, chat.text
    watch.tell("first answer", backend=chat.headers["x-xgen-backend"], nodes=started_types())
    # Longer than the autoscaler leaves an idle node, while nobody asks for anything.
    until = time.monotonic() + 9.0
    while time.monotonic() < until:
        assert started_types() == ["amd"], "a node in use was taken for an idle one"
        client.management("GET", "nodes")
        time.sleep(1.0)
    watch.tell("still there", nodes=started_types())
    assert client.unload("small").status_code == 200
    watch.tell("unloaded")
    wait_until(lambda: started_types() == [], PATIENCE_S, "the idle node to be taken back")
    watch.tell("no node but the head", nodes=started_types())


if __name__ == "__main__":
    run(Path(sys.argv[1]))
