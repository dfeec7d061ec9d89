"""The chart, rendered by Helm itself: as it comes it is the committed fleet, and what values change fits
together.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from tests.cluster_configs.test_configs import ARGUMENTS, CONFIGS
from tests.cluster_configs.test_kuberay import FLEET, KUBERNETES, Object, complaints, ray_container
from xgen_ray import __version__
from xgen_ray.placement.nodetypes import NodeType, imagine

CHART = CONFIGS / "helm"
HELM = Path(sys.executable).with_name("helm")
pytestmark = pytest.mark.skipif(
    not HELM.exists(), reason=f"there is no Helm for {platform.system()} on {platform.machine()}"
)
UNLIKE: Object = {
    "image": {"repository": "registry.local/xgen-ray", "tag": "mine"},
    "secrets": {"apiKeys": "keys", "redis": "password"},
    "storage": {"models": {"size": "2Ti", "storageClass": "nfs"}},
    "routers": 3,
    "models": [{"model": "hf:org/name", "name": "llama", "scaling": {"min_replicas": 0}}],
    "nodeCosts": {"sm_90": 4},
    "profiles": [{"option": "memory_bytes", "value": 48 << 30, "gfx": ["gfx1151"], "reason": "others"}],
    "groups": {
        "amd": None,
        "eight-cards": {
            "image": "nvidia",
            "device": "nvidia",
            "gpus": 8,
            "gpuMemory": "80g",
            "backends": ["llama-server-cuda", "vllm-cuda"],
            "cpu": 64,
            "memory": 512,
            "nodeSelector": {"node.kubernetes.io/instance-type": "dgx"},
            "tolerations": [{"key": "dedicated", "operator": "Exists"}],
            "replicas": 0,
            "minReplicas": 0,
            "maxReplicas": 2,
        },
        "instinct": {
            "image": "amd",
            "device": "amd_cdna",
            "gpus": 1,
            "gpuMemory": "192g",
            "backends": ["vllm-rocm"],
            "cpu": 16,
            "memory": 128,
            "supplementalGroups": [993],
            "replicas": 1,
            "minReplicas": 1,
            "maxReplicas": 1,
        },
    },
}


def helm(*arguments: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(HELM), *arguments, "--values", "-"]
    text = json.dumps(values or {})
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)


def rendered(namespace: str = "xgen-ray", values: Object | None = None) -> dict[tuple[str, str], Object]:
    """The chart's objects by kind and name."""
    where = ("--namespace", namespace, "--kube-version", KUBERNETES)
    done = helm("template", "fleet", str(CHART), *where, values=values)
    assert done.returncode == 0, done.stderr
    return by_name(done.stdout)


def by_name(text: str) -> dict[tuple[str, str], Object]:
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text) if one}


def opened(objects: dict[tuple[str, str], Object]) -> dict[tuple[str, str], Any]:
    """With what Helm has brought into another order, or writes as text, as it is meant."""
    spec = objects["RayService", "xgen-ray"]["spec"]
    cluster = spec["rayClusterConfig"]
    cluster["workerGroupSpecs"] = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    spec["serveConfigV2"] = yaml.safe_load(spec["serveConfigV2"])
    return objects


def test_as_it_comes_it_is_the_committed_fleet() -> None:
    assert opened(rendered()) == opened(by_name(FLEET.read_text()))


def test_it_has_no_fault_by_helms_own_rules() -> None:
    done = helm("lint", "--strict", str(CHART), values=UNLIKE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_values_say_is_said_everywhere() -> None:
    objects = rendered("serving", UNLIKE)
    service = objects["RayService", "xgen-ray"]
    assert not list(complaints(service))
    for one in objects.values():
        assert one["metadata"]["namespace"] == "serving"
        if one is not service:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
    assert objects["PersistentVolumeClaim", "xgen-ray-models"]["spec"]["storageClassName"] == "nfs"
    (redis,) = objects["StatefulSet", "xgen-ray-redis"]["spec"]["template"]["spec"]["containers"]
    assert redis["env"][0]["valueFrom"]["secretKeyRef"] == {"name": "password", "key": "password"}

    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    settings = {one.name: ARGUMENTS[one.name].model_validate(one.args) for one in config.applications}
    control = settings["xgen-control"].model_dump()
    assert control["base_url"] == "http://xgen-ray.serving:8000"
    assert [model["name"] for model in control["models"]] == ["llama"]
    assert control["node_costs"] == {"sm_90": 4}
    assert [row["value"] for row in control["profiles"]] == [48 << 30]
    assert settings["xgen-router"].model_dump()["replicas"] == 3

    cluster = service["spec"]["rayClusterConfig"]
    secret = cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": "password", "key": "password"}
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert [one["secret"]["secretName"] for one in head["volumes"] if "secret" in one] == ["keys"]


def test_every_group_is_what_its_values_say_and_control_is_told_the_same() -> None:
    service = rendered(values=UNLIKE)["RayService", "xgen-ray"]
    cluster = service["spec"]["rayClusterConfig"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"nvidia", "cpu", "eight-cards", "instinct"}
    eight, instinct = groups["eight-cards"], groups["instinct"]
    assert eight["resources"] == {"CPU": "64", "GPU": "0", "nvidia": "8"}
    assert ray_container(eight)["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert ray_container(eight)["resources"]["limits"]["memory"] == "512Gi"
    pod = eight["template"]["spec"]
    assert pod["nodeSelector"] == {"node.kubernetes.io/instance-type": "dgx"}
    assert [one["key"] for one in pod["tolerations"]] == ["nvidia.com/gpu", "dedicated"]
    assert instinct["template"]["spec"]["securityContext"]["supplementalGroups"] == [993]
    labels = {name.removeprefix("xgen-ray/"): value for name, value in instinct["labels"].items()}
    assert labels == {
        "ram": "128g",
        "gpu-type": "amd_cdna",
        "gpu-memory": "192g",
        "gpu-amd_cdna": "true",
        "backend-vllm-rocm": "true",
    }
    assert {ray_container(group)["image"] for group in (eight, instinct)} == {
        "registry.local/xgen-ray:mine-nvidia",
        "registry.local/xgen-ray:mine-amd",
    }
    (control, _) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    told = control["args"]["node_types"]
    assert set(told) == set(groups)
    for name, group in groups.items():
        counted = {key: int(size) for key, size in group["resources"].items() if int(size)}
        expected = {"max_workers": group["maxReplicas"], "resources": counted, "labels": group["labels"]}
        assert told[name] == expected
        assert imagine(NodeType(name, counted, group["labels"])) is not None


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"router": 2}, "router"),
        ({"groups": {"nvidia": {"image": "intel"}}}, "image"),
        ({"groups": {"nvidia": {"gpus": 0}}}, "gpus"),
        ({"groups": {"cpu": {"gpus": 1}}}, "gpus"),
        ({"groups": {"more": {"image": "cpu"}}}, "required"),
        ({"profiles": [{"option": "slots"}]}, "reason"),
        ({"storage": {"models": {"sise": "1Gi"}}}, "sise"),
    ],
)
def test_values_that_are_wrong_are_refused(values: Object, word: str) -> None:
    done = helm("template", "fleet", str(CHART), values=values)
    assert done.returncode != 0
    assert word in done.stderr, done.stderr


def test_its_version_is_this_packages() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
