"""The fleet on Kubernetes, read by what will read it: KubeRay's schema, Kubernetes', Ray's autoscaler, us."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray._private.label_utils import validate_node_label_syntax
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve.schema import ServeDeploySchema

from tests.cluster_configs.test_configs import ARGUMENTS, CONFIGS, node_options
from xgen_ray import __version__
from xgen_ray.hardware.types import GPUType
from xgen_ray.placement.nodetypes import NodeType, imagine
from xgen_ray.placement.tags import CPU_NODE, LABEL_PREFIX
from xgen_ray.placement.types import Backend

FLEET = CONFIGS / "kuberay" / "fleet.yaml"
MONITORING = CONFIGS / "kuberay" / "monitoring.yaml"
SCHEMAS = Path(__file__).parent / "schemas"
# The oldest that Kubernetes still supports.
KUBERNETES = "1.33"
Object = dict[str, Any]


@cache
def _documents() -> tuple[Object, ...]:
    return tuple(yaml.safe_load_all(FLEET.read_text()))


def documents(kind: str) -> list[Object]:
    return [copy.deepcopy(one) for one in _documents() if one["kind"] == kind]


def ray_service() -> Object:
    (found,) = documents("RayService")
    return found


def groups() -> dict[str, Object]:
    """The head's group and those of workers, by name."""
    cluster = ray_service()["spec"]["rayClusterConfig"]
    workers = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"], **workers}


def control_arguments() -> Object:
    serve_config: Object = yaml.safe_load(ray_service()["spec"]["serveConfigV2"])
    return next(one["args"] for one in serve_config["applications"] if one["name"] == "xgen-control")


def ray_container(group: Object) -> Object:
    container: Object = group["template"]["spec"]["containers"][0]
    return container


def closed(schema: Any) -> Any:
    """The schema with every object closed: the API server drops fields that it does not know, and says
    nothing; here they are mistakes.
    """
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if named and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


@cache
def schema_of(kind: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((SCHEMAS / f"{kind.lower()}-v1.json").read_text())
    return jsonschema.Draft202012Validator(closed(schema))


def complaints(document: Object) -> Iterator[str]:
    # The API server fills metadata in, and its type is not the resource's own.
    document = {**document, "metadata": {}}
    errors = schema_of(document["kind"]).iter_errors(document)
    return (f"{error.json_path}: {error.message}" for error in errors)


def test_kuberay_takes_the_service() -> None:
    assert not list(complaints(ray_service()))


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda spec: spec.update(serveConfig="x"), "serveConfig"),
        (lambda spec: spec["rayClusterConfig"]["workerGroupSpecs"][0].pop("maxReplicas"), "maxReplicas"),
        (lambda spec: spec["rayClusterConfig"]["workerGroupSpecs"][0].update(replicas="many"), "many"),
        (lambda spec: spec["rayClusterConfig"]["authOptions"].update(mode="none"), "none"),
        (lambda spec: ray_container(spec["rayClusterConfig"]["headGroupSpec"]).update(imag="x"), "imag"),
    ],
)
def test_the_schema_would_notice(spoil: Callable[[Object], Any], word: str) -> None:
    service = ray_service()
    spoil(service["spec"])
    (complaint,) = complaints(service)
    assert word in complaint


def pod_monitor() -> Object:
    monitor: Object = yaml.safe_load(MONITORING.read_text())
    return monitor


def test_the_prometheus_operator_takes_the_monitor() -> None:
    assert not list(complaints(pod_monitor()))
    spoilt = pod_monitor()
    spoilt["spec"]["podMetricsEndpoint"] = []
    (complaint,) = complaints(spoilt)
    assert "podMetricsEndpoint" in complaint


@pytest.mark.parametrize("name", ["head", "nvidia", "amd", "cpu"])
def test_a_pod_serves_metrics_to_prometheus_alone(name: str) -> None:
    container = ray_container(groups()[name])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    # The port that the operator would add by itself, under its own name for it.
    assert ports["metrics"] == 8080
    assert "--metrics-port=8080" in container["args"]
    monitor = pod_monitor()
    assert monitor["metadata"]["namespace"] == ray_service()["metadata"]["namespace"]
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]
    policy = next(one["spec"] for one in documents("NetworkPolicy") if one["metadata"]["name"] == "xgen-ray")
    assert monitor["spec"]["selector"] == policy["podSelector"]
    (rule,) = [one for one in policy["ingress"] if {"port": 8080} in one.get("ports", ())]
    (readers,) = rule["from"]
    assert readers["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}


def kubernetes_objects() -> list[Any]:
    plain = [one for one in _documents() if one["kind"] != "RayService"]
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": group["template"]["spec"]}
        for name, group in groups().items()
    ]
    return [pytest.param(one, id=f"{one['kind']} {one['metadata']['name']}") for one in [*plain, *pods]]


@pytest.mark.parametrize("document", kubernetes_objects())
def test_kubernetes_takes_the_object(document: Object) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_kubernetes_schema_would_notice() -> None:
    (claim, *_) = documents("PersistentVolumeClaim")
    claim["spec"]["accessMode"] = "ReadWriteOnce"
    with pytest.raises(kubernetes_validate.ValidationError, match="accessMode"):
        kubernetes_validate.validate(claim, KUBERNETES, strict=True)


def test_serve_and_we_take_the_embedded_config() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(ray_service()["spec"]["serveConfigV2"]))
    assert {application.name for application in config.applications} == set(ARGUMENTS)
    for application in config.applications:
        settings = ARGUMENTS[application.name].model_validate(application.args)
        # It listens on all interfaces.
        assert settings.api_keys_file == Path("/run/xgen-ray/api-keys.yaml")


def test_rays_autoscaler_knows_what_each_group_brings() -> None:
    """As the autoscaler in the head's pod reads the cluster, before any machine of a group is there."""
    cluster = {
        "metadata": {"name": "xgen-ray", "namespace": "xgen-ray"},
        "spec": ray_service()["spec"]["rayClusterConfig"],
    }
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    types = config["available_node_types"]
    assert {name: (one["min_workers"], one["max_workers"]) for name, one in types.items()} == {
        "headgroup": (0, 0),
        "nvidia": (0, 8),
        "amd": (0, 8),
        "cpu": (0, 8),
    }
    assert config["idle_timeout_minutes"] == 10
    brings = {
        name: {key: count for key, count in one["resources"].items() if key != "memory"}
        for name, one in types.items()
    }
    assert brings == {
        "headgroup": {"CPU": 0},
        "nvidia": {"CPU": 8, "GPU": 0, "nvidia": 1},
        "amd": {"CPU": 8, "GPU": 0, "amd_rdna": 1},
        "cpu": {"CPU": 8, CPU_NODE: 1},
    }


@pytest.mark.parametrize("name", ["nvidia", "amd", "cpu"])
def test_what_a_group_promises_are_words_that_nodes_use(name: str) -> None:
    group = groups()[name]
    labels = group["labels"]
    validate_node_label_syntax(labels)
    kind = GPUType(labels[f"{LABEL_PREFIX}gpu-type"])
    backends = {key.removeprefix(f"{LABEL_PREFIX}backend-") for key in labels if "/backend-" in key}
    assert backends
    assert backends <= set(Backend)
    own = set(group["resources"]) - {"CPU", "GPU"}
    assert own == {CPU_NODE if kind is GPUType.CPU else str(kind)}


@pytest.mark.parametrize("name", ["nvidia", "amd", "cpu"])
def test_control_is_told_what_the_groups_are(name: str) -> None:
    group, told = groups()[name], control_arguments()["node_types"][name]
    assert told["labels"] == group["labels"]
    assert told["max_workers"] == group["maxReplicas"]
    resources = {key: float(size) for key, size in group["resources"].items() if float(size)}
    assert told["resources"] == resources
    assert imagine(NodeType(name, resources, told["labels"])) is not None, "how large it is, is said"


@pytest.mark.parametrize("name", ["head", "nvidia", "amd", "cpu"])
def test_a_pod_starts_its_node_with_options_that_exist(name: str) -> None:
    arguments = [word.replace("$(", "").replace(")", "") for word in ray_container(groups()[name])["args"]]
    assert "command" not in ray_container(groups()[name]), "the entry point of the image is replaced"
    if name == "head":
        assert arguments[0] == "head"
        options = node_options(["xgen-ray", "node", "--head", "--block", *arguments[1:]])
        assert options["dashboard"]
        assert options["num_cpus"] == 0
        assert options["ray_arguments"][0] == "--dashboard-host=0.0.0.0"
    else:
        assert arguments[:2] == ["worker", "FQ_RAY_IP:6379"]
        options = node_options(["xgen-ray", "node", "--block", "--address", "10.0.0.1:6379", *arguments[2:]])
        assert options["name"] == "POD_NAME"


@pytest.mark.parametrize("name", ["head", "nvidia", "amd", "cpu"])
def test_a_pod_is_confined_and_watched(name: str) -> None:
    spec, container = groups()[name]["template"]["spec"], ray_container(groups()[name])
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == 10001
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["exec"] == {"command": ["node-healthy"]}
    mounted = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounted["/models"]["readOnly"]
    assert {mount["name"] for mount in mounted.values()} <= {volume["name"] for volume in spec["volumes"]}


@pytest.mark.parametrize("name", ["nvidia", "amd", "cpu"])
def test_a_pod_has_no_more_processors_than_its_group_says(name: str) -> None:
    """Without a limit it would see, and compute with, all that its machine has."""
    group = groups()[name]
    resources = ray_container(group)["resources"]
    assert resources["limits"]["cpu"] == resources["requests"]["cpu"] == group["resources"]["CPU"]


def test_gpus_are_asked_of_the_device_plugin_and_their_taints_tolerated() -> None:
    for name, resource in (("nvidia", "nvidia.com/gpu"), ("amd", "amd.com/gpu")):
        spec = groups()[name]["template"]["spec"]
        assert ray_container(groups()[name])["resources"]["limits"][resource] == 1
        assert {"key": resource, "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    assert groups()["amd"]["template"]["spec"]["securityContext"]["supplementalGroups"]


def test_secrets_are_named_and_never_written_down() -> None:
    assert not documents("Secret")
    (redis,) = documents("StatefulSet")
    (password,) = redis["spec"]["template"]["spec"]["containers"][0]["env"]
    cluster = ray_service()["spec"]["rayClusterConfig"]
    reference = {"secretKeyRef": {"name": "xgen-ray-redis", "key": "password"}}
    assert password["valueFrom"] == reference
    assert cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"] == reference
    assert cluster["authOptions"] == {"mode": "token"}
    secrets = re.findall(r"create secret generic (\S+)", FLEET.read_text())
    assert secrets == ["xgen-ray-api-keys", "xgen-ray-redis"]


def test_the_keys_end_up_in_a_file_that_only_the_head_reads() -> None:
    """`read_api_keys` refuses a file that a group can read, as Kubernetes mounts it for one."""
    (copying,) = groups()["head"]["template"]["spec"]["initContainers"]
    assert copying["command"][:2] == ["install", "--mode=0600"]
    assert copying["command"][-1] == "/run/xgen-ray/api-keys.yaml"


def test_what_is_referred_to_is_there() -> None:
    claims = {one["metadata"]["name"] for one in documents("PersistentVolumeClaim")}
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for group in groups().values()
        for volume in group["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert used == claims
    services = {one["metadata"]["name"]: one["spec"] for one in documents("Service")}
    head = groups()["head"]["template"]["metadata"]["labels"]
    assert services["xgen-ray"]["selector"].items() <= head.items()
    assert not any(key.startswith("app.kubernetes.io/") for key in head), (
        "the operator's service looks for its own"
    )
    (redis,) = documents("StatefulSet")
    assert services["xgen-ray-redis"]["selector"] == redis["spec"]["selector"]["matchLabels"]
    address = ray_service()["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisAddress"]
    assert address == "redis://xgen-ray-redis:6379"
    assert {one["metadata"]["namespace"] for one in _documents()} == {"xgen-ray"}


def test_redis_is_open_to_the_head_and_to_the_job_that_empties_it() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in documents("NetworkPolicy")}
    (rule,) = policies["xgen-ray-redis"]["ingress"]
    (source,) = rule["from"]
    (expression,) = source["podSelector"]["matchExpressions"]
    assert expression == {"key": "ray.io/node-type", "operator": "In", "values": ["head", "redis-cleanup"]}


def test_versions_are_those_of_this_package() -> None:
    assert ray_service()["spec"]["rayClusterConfig"]["rayVersion"] == ray.__version__
    images = {name: ray_container(group)["image"] for name, group in groups().items()}
    prefix = f"ghcr.io/xgen-ray/xgen-ray:{__version__}"
    assert images == {
        "head": f"{prefix}-cpu",
        "nvidia": f"{prefix}-nvidia",
        "amd": f"{prefix}-amd",
        "cpu": f"{prefix}-cpu",
    }
