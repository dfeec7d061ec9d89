"""A program that asks a cluster's head for its versions and prints them as JSON.

    python -m deployments.head_facts HOST:PORT

A process of its own because Ray's client ends its process when a head does not answer, and because the
token and the mode of authentication are read once per process. Its owner sets the deadline.
"""

import json
import sys

from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled; its stub lacks it
from ray.exceptions import AuthenticationError


def main(address: str) -> None:
    try:
        facts = GcsClient(address=address).internal_kv_get(
            CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER
        )
    except AuthenticationError:
        answer = {"refused": True}
    else:
        answer = json.loads(facts) if facts else {}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
