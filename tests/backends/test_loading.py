import pytest

from xgen_ray.backends.loading import FIRST_STEP, shards_read, step


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((), "before"),
        (("0.00.005 I srv load_model: loading model 'x.gguf'",), FIRST_STEP),
        (("loading model", "0.00.682 I cmn init: llama threadpool init, n_threads = 1"), "warming up"),
        (("I srv load_model: initializing, n_slots = 4, n_ctx_slot = 512",), "making room for requests"),
        (("I srv init: model loaded", "unrelated"), "about to answer"),
        (("INFO [core.py:123] Initializing a V1 LLM engine with config: kernel_warmup=True",), FIRST_STEP),
        (("(Worker) Loading safetensors checkpoint shards:  50% Completed | 1/2",), FIRST_STEP),
        (("(EngineCore) GPU KV cache size: 46,592 tokens",), "making room for requests"),
        (
            ("(EngineCore) Capturing CUDA graphs (mixed prefill-decode)",),
            "compiling, and recording GPU graphs",
        ),
        (("WARNING Enforce eager set, disabling torch.compile and CUDAGraphs.",), "before"),
        (("(EngineCore) init engine (profile, create kv cache) took 4.08 s",), "warming up"),
        (("(APIServer) Starting vLLM server on http://127.0.0.1:1",), "about to answer"),
    ],
)
def test_the_log_names_the_step(lines: tuple[str, ...], words: str) -> None:
    assert step(lines, "before") == words


def test_vllm_tells_how_much_of_the_weights_it_has_read() -> None:
    half = "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00]"
    assert shards_read((), None) is None
    assert shards_read((half, "something else"), None) == 0.5
    assert shards_read(("something else",), 0.5) == 0.5
