import pytest

from tests.backends.plans import SAMPLES
from xgen_ray.backends.bundled_flags import help_text
from xgen_ray.backends.flags import MEANINGS, Absent, KnownFlags, express, parse_help
from xgen_ray.errors import UnknownOption

CURRENT = parse_help((SAMPLES / "help_vulkan_build.txt").read_text())
OLDER = parse_help((SAMPLES / "help_older_build.txt").read_text())
BUNDLED = parse_help(help_text())
NOTHING = parse_help("")


@pytest.mark.parametrize(
    ("name", "value", "arity", "env"),
    [
        ("--threads", "N", 1, "LLAMA_ARG_THREADS"),
        ("-t", "N", 1, "LLAMA_ARG_THREADS"),
        ("--version", None, 0, None),
        ("--usage", None, 0, None),
        ("--no-kv-unified", None, 0, "LLAMA_ARG_KV_UNIFIED"),
        ("--flash-attn", "[on|off|auto]", 1, "LLAMA_ARG_FLASH_ATTN"),
        ("--control-vector-layer-range", "START END", 2, None),
        ("--override-tensor", "<tensor name pattern>=<buffer type>,...", 1, "LLAMA_ARG_OVERRIDE_TENSOR"),
        ("--samplers", "SAMPLERS", 1, None),
        ("-hfrd", "<user>/<model>[:quant]", 1, "LLAMA_ARG_SPEC_DRAFT_HF_REPO"),
        ("--api-key", "KEY", 1, "LLAMA_API_KEY"),
    ],
)
def test_reads_names_values_and_variables_of_a_real_help(
    name: str, value: str | None, arity: int, env: str | None
) -> None:
    flag = CURRENT.find(name)
    assert flag is not None
    assert (flag.value, flag.arity, flag.env) == (value, arity, env)


def test_an_entry_that_only_says_it_was_removed_is_not_known() -> None:
    assert CURRENT.find("--draft-max") is None
    assert CURRENT.find("--spec-draft-n-max") is not None


def test_underscores_are_dashes_in_long_names_only() -> None:
    assert CURRENT.find("--ctx_size") is CURRENT.find("--ctx-size")
    assert CURRENT.find("-c_") is None


def test_a_description_is_not_taken_for_flags() -> None:
    # Its text speaks of --threads and --no-mmproj.
    flag = CURRENT.find("-tb")
    assert flag is not None
    assert flag.names == ("-tb", "--threads-batch")


@pytest.mark.parametrize(
    ("flag", "value", "accepted"),
    [
        ("--split-mode", "tensor", True),
        ("--split-mode", "diagonal", False),
        ("--flash-attn", "on", True),
        ("--flash-attn", "1", False),
        ("--cpu-strict", "1", True),
        ("--device", "Vulkan0", True),
        ("--threads", "7", True),
        ("--version", "x", False),
    ],
)
def test_listed_values_are_the_only_ones(flag: str, value: str, accepted: bool) -> None:
    found = CURRENT.find(flag)
    assert found is not None
    assert found.accepts(value) is accepted


@pytest.mark.parametrize(
    ("known", "meaning", "argv"),
    [
        (CURRENT, "flash_attention_on", ("--flash-attn", "on")),
        (OLDER, "flash_attention_on", ("--flash-attn",)),
        (CURRENT, "flash_attention_off", ("--flash-attn", "off")),
        (OLDER, "flash_attention_off", ()),
        (CURRENT, "memory_lock", ("--load-mode", "mlock")),
        (OLDER, "memory_lock", ("--mlock",)),
        (CURRENT, "fit_off", ("--fit", "off")),
        (OLDER, "fit_off", ()),
        (CURRENT, "no_page", ("--no-ui",)),
        (OLDER, "no_page", ()),
        (CURRENT, "no_device", ("--device", "none")),
        (OLDER, "no_device", ()),
        (CURRENT, "embed", ("--embeddings",)),
        (BUNDLED, "embed", ("--embeddings",)),
    ],
)
def test_says_it_in_the_words_of_the_build(known: KnownFlags, meaning: str, argv: tuple[str, ...]) -> None:
    said = express(known, meaning)
    assert (said.argv, said.note) == (argv, None)


def test_what_is_only_nice_to_have_is_left_out_with_a_note() -> None:
    said = express(OLDER, "fit_on")
    assert said.argv == ()
    assert said.note == "this build of llama-server has no --fit: left out"


@pytest.mark.parametrize(("meaning", "value"), [("device", "CUDA0"), ("split_mode", "tensor")])
def test_what_cannot_be_said_is_refused(meaning: str, value: str) -> None:
    with pytest.raises(UnknownOption, match="install a newer build"):
        express(OLDER, meaning, value)


def test_a_refusal_does_not_show_the_value_which_may_be_a_key() -> None:
    with pytest.raises(UnknownOption) as caught:
        express(NOTHING, "api_key", "s3cret")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("meaning", sorted(MEANINGS))
def test_every_meaning_has_words_in_the_current_and_in_the_bundled_build(meaning: str) -> None:
    value = {"split_mode": "layer", "tensor_split": "3,1", "pooling": "mean"}.get(meaning, "1")
    said = express(CURRENT, meaning, value)
    assert said.argv
    assert express(BUNDLED, meaning, value).argv == said.argv


@pytest.mark.parametrize("meaning", sorted(MEANINGS))
def test_a_build_that_knows_nothing_gets_nothing_or_a_refusal(meaning: str) -> None:
    if MEANINGS[meaning].absent is Absent.REFUSE:
        with pytest.raises(UnknownOption):
            express(NOTHING, meaning, "1")
    else:
        assert express(NOTHING, meaning, "1").argv == ()
