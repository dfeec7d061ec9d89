"""Whether an engine was told not to keep the beginnings of prompts."""

import pytest

from tests.backends.plans import SAMPLES
from tests.backends.vllm_standin import HELP
from xgen_ray.backends import extra_args, flags, vllm_flags
from xgen_ray.backends.prefix_caching import caches_prefixes
from xgen_ray.placement.types import Backend

VLLM_OFF, VLLM_ON = "--no-enable-prefix-caching", "--enable-prefix-caching"
LLAMA_OFF, LLAMA_ON = "--no-cache-prompt", "--cache-prompt"


@pytest.mark.parametrize("backend", Backend)
def test_every_engine_keeps_them_unless_it_is_told_otherwise(backend: Backend) -> None:
    assert caches_prefixes(backend, ())
    assert caches_prefixes(backend, ("--seed", "7"))


@pytest.mark.parametrize(
    ("backend", "args", "caches"),
    [
        (Backend.VLLM_CUDA, ("--seed", "7", VLLM_OFF), False),
        (Backend.VLLM_ROCM, ("--no_enable_prefix_caching",), False),
        (Backend.VLLM_CPU, (VLLM_ON,), True),
        (Backend.VLLM_CPU, (VLLM_OFF, VLLM_ON), True),
        (Backend.VLLM_CPU, (VLLM_ON, VLLM_OFF), False),
        (Backend.LLAMA_SERVER_VULKAN, (LLAMA_OFF, "--seed", "7"), False),
        (Backend.LLAMA_SERVER_CPU, ("--no_cache_prompt",), False),
        (Backend.LLAMA_SERVER_CPU, (LLAMA_OFF, LLAMA_ON), True),
        (Backend.LLAMA_SERVER_CUDA, (VLLM_OFF,), True),
    ],
)
def test_the_last_word_counts_as_it_does_for_the_engine(
    backend: Backend, args: tuple[str, ...], caches: bool
) -> None:
    assert caches_prefixes(backend, args) is caches


def test_these_are_words_that_users_may_add() -> None:
    vllm = vllm_flags.parse_help(HELP.read_text())
    assert vllm_flags.check_extra_args((VLLM_ON, VLLM_OFF), vllm)
    llama_server = flags.parse_help((SAMPLES / "help_vulkan_build.txt").read_text())
    assert extra_args.check_extra_args((LLAMA_ON, LLAMA_OFF), llama_server)
