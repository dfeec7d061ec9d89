"""Ray Serve LLM with one model on vLLM's CPU build, for ``tests.bench.against_ray_llm`` to measure against.

    python ray_llm_server.py MODEL_FOLDER NAME PORT SLOTS CONTEXT READY_WORD

Runs in an environment that has Ray and vLLM together, and imports nothing of ours. Everything that is not
said here is as Ray Serve LLM has it by default. Says READY_WORD once it serves; ends with its parent.
"""

import ctypes
import os
import signal
import sys

ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
# The same as our adapter sets for the same engine.
os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_TARGET_DEVICE="cpu",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    OMP_NUM_THREADS="1",
    VLLM_NO_USAGE_STATS="1",
    RAY_USAGE_STATS_ENABLED="0",
    PATH=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",  # noqa: PTH120
)

import ray  # noqa: E402
from ray import serve  # noqa: E402
from ray.serve.llm import LLMConfig, build_openai_app  # noqa: E402


def main() -> None:
    folder, name, port, slots, context, dtype, ready_word = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=200 * 2**20)
    once = {"min_replicas": 1, "max_replicas": 1}
    config = LLMConfig(
        model_loading_config={"model_id": name, "model_source": folder},
        placement_group_config={"bundles": [{"CPU": 1}]},
        deployment_config={"autoscaling_config": once},
        engine_kwargs={
            "dtype": dtype,
            "enforce_eager": True,
            "max_model_len": int(context),
            "max_num_seqs": int(slots),
            "distributed_executor_backend": "mp",
        },
        log_engine_metrics=False,
    )
    ingress = {"ray_actor_options": {"num_cpus": 0.2}, "autoscaling_config": once}
    app = build_openai_app({"llm_configs": [config], "ingress_deployment_config": ingress})
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    try:
        serve.run(app, blocking=False)
        print(ready_word, flush=True)
        signal.pause()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
