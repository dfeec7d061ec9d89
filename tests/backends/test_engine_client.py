import pytest

from xgen_ray.backends.engine import EngineLoad
from xgen_ray.backends.engine_client import read_load

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
"""


@pytest.mark.parametrize(
    ("text", "load"),
    [
        ("llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\n", EngineLoad(1, 2, 8)),
        ("llamacpp:requests_processing 0\n", EngineLoad(0, 0, 8)),
        (VLLM, EngineLoad(4, 7, 8, 0.5)),
        ("vllm:num_requests_running 1\nvllm:kv_cache_usage_perc NaN\n", EngineLoad(1, 0, 8)),
        ("", None),
        ("something_else 1\n", None),
        ("llamacpp:requests_processing NaN\n", None),
        ("llamacpp:requests_processing {broken", None),
    ],
)
def test_reads_the_load_that_an_engine_reports(text: str, load: EngineLoad | None) -> None:
    assert read_load(text, 8) == load
