"""Ray's fake node provider, with machines that are unlike: each node type has an environment of its own,
which leads to what a machine of that type has. The nodes themselves are real Ray nodes.
"""

import os
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE


class FleetProvider(FakeMultiNodeProvider):
    """``environments`` in the provider's configuration are by node type."""

    def _create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        node_type = tags[TAG_RAY_USER_NODE_TYPE]
        # The variable is set on every machine that an autoscaler starts; Ray makes a label of it.
        own = {**self.provider_config["environments"].get(node_type, {}), "RAY_NODE_TYPE_NAME": node_type}
        # The node's processes get this process's environment; nodes are made one at a time.
        with self.lock:
            before = dict(os.environ)
            os.environ.update(own)
            try:
                super()._create_node_with_resources_and_labels(  # type: ignore[no-untyped-call]
                    node_config, tags, count, resources, labels
                )
            finally:
                os.environ.clear()
                os.environ.update(before)
