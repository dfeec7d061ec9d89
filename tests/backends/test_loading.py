import pytest

from xgen_ray.backends.loading import FIRST_STEP, step


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((), "before"),
        (("0.00.005 I srv load_model: loading model 'x.gguf'",), FIRST_STEP),
        (("loading model", "0.00.682 I cmn init: llama threadpool init, n_threads = 1"), "warming up"),
        (("I srv load_model: initializing, n_slots = 4, n_ctx_slot = 512",), "making room for requests"),
        (("I srv init: model loaded", "unrelated"), "about to answer"),
    ],
)
def test_the_log_names_the_step(lines: tuple[str, ...], words: str) -> None:
    assert step(lines, "before") == words
