import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.plans import SAMPLES
from xgen_ray.backends.extra_args import OWNED, check_extra_args
from xgen_ray.backends.flags import KnownFlags, canonical, parse_help
from xgen_ray.errors import InvalidRequest, UnknownOption

CURRENT = parse_help((SAMPLES / "help_vulkan_build.txt").read_text())
FLAGS = sorted(CURRENT.by_name)


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("--temp", "0.7"),
        ("--seed", "-1"),
        ("--reasoning-budget", "-1"),
        ("--swa-full", "--top-k", "40"),
        ("--rope-scaling", "yarn"),
        ("--override-tensor", r"blk\.\d+\.ffn_.*_exps=CPU"),
        ("--control-vector-layer-range", "1", "2"),
        ("--no-warmup",),
    ],
)
def test_harmless_flags_pass_unchanged(args: tuple[str, ...]) -> None:
    assert check_extra_args(args, CURRENT) == args


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--model", "/etc/shadow"), "field 'model'"),
        (("-m", "/x.gguf"), "field 'model'"),
        (("--model=/x.gguf",), "field 'model'"),
        (("--model_url", "http://x"), "field 'model'"),
        (("-hf", "org/name"), "field 'model'"),
        (("--port", "80"), "where an engine listens"),
        (("--host=0.0.0.0",), "where an engine listens"),
        (("--api_key", "x"), "where an engine listens"),
        (("--api-key-file", "/etc/passwd"), "where an engine listens"),
        (("--ctx-size", "1"), "use the option 'context'"),
        (("-c", "1"), "use the option 'context'"),
        (("-ngl", "99"), "use the option 'gpu_layers'"),
        (("--device", "CUDA1"), "use the option 'gpus'"),
        (("-devd", "CUDA1"), "use the option 'gpus'"),
        (("--tensor-split", "3,1"), "use the options 'gpus' and 'split_mode'"),
        (("-ts", "1,0"), "more on a GPU than is leased of it"),
        (("--mlock",), "use the option 'memory_lock'"),
        (("--chat-template-file", "/x"), "files on the node"),
        (("--lora", "/x"), "files on the node"),
        (("--slot-save-path", "/x"), "files on the node"),
        (("--log-file", "/x"), "files on the node"),
        (("--grammar-file", "/x"), "files on the node"),
        (("--tools", "all"), "power over the node"),
        (("--mcp-servers-json", "{}"), "power over the node"),
        (("-ag",), "power over the node"),
        (("--rpc", "evil:1"), "the network"),
        (("--gpt-oss-20b-default",), "the network"),
        (("--list-devices",), "end"),
        (("--override-tensor", "x=CUDA1"), "only move tensors to the host"),
        (("--temp", "0.7", "--ssl-key-file", "/x"), "where an engine listens"),
    ],
)
def test_what_is_not_the_users_is_refused_with_the_reason(args: tuple[str, ...], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        check_extra_args(args, CURRENT)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--temp=0.7",), "as two arguments"),
        (("0.7",), "is not a flag"),
        (("",), "is not a flag"),
        (("--temp",), "needs 1 more"),
        (("--temp", "--model"), "looks like another flag"),
        (("--control-vector-layer-range", "1"), "needs 2 more"),
        (("--rope-scaling", "cubic"), "takes {none,linear,yarn}"),
        (("--temp", "1\0"), "zero byte"),
    ],
)
def test_malformed_arguments_are_refused(args: tuple[str, ...], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        check_extra_args(args, CURRENT)


def test_an_unknown_flag_comes_with_the_nearest_one_that_a_user_may_set() -> None:
    with pytest.raises(UnknownOption, match=r"no --tempp; did you mean --temp\?"):
        check_extra_args(("--tempp", "1"), CURRENT)
    with pytest.raises(UnknownOption) as caught:
        check_extra_args(("--modell", "x"), CURRENT)
    assert "--model?" not in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        "--state-out FNAME                       write the state",
        "--thing PATH                            a folder",
        "--peer-url X                            another node",
        "--fetch-it                              download a thing",
        "--new-tool X                            run something",
        "--show-it                               show it and exit",
        "--danger                                do not enable in untrusted environments",
    ],
)
def test_flags_newer_than_the_table_are_judged_by_their_help(entry: str) -> None:
    known = parse_help(entry)
    (name,) = known.by_name
    with pytest.raises(InvalidRequest, match="cannot be set by extra_args"):
        check_extra_args((name, "x"), known)


def test_abbreviations_are_unknown() -> None:
    for name in FLAGS[::7]:
        if name.startswith("--") and CURRENT.find(name[:-1]) is None:
            with pytest.raises(InvalidRequest):
                check_extra_args((name[:-1], "x"), CURRENT)


def flags_in(args: tuple[str, ...], known: KnownFlags) -> list[str]:
    """The flags of a command line, read as llama.cpp reads it: each takes what follows, whatever it is."""
    found = []
    rest = list(args)
    while rest:
        flag = known.find(rest.pop(0))
        assert flag is not None
        found += [canonical(name) for name in flag.names]
        del rest[: flag.arity]
    return found


WORDS = st.one_of(
    st.sampled_from(FLAGS),
    st.sampled_from(FLAGS).map(lambda name: name.replace("-", "_")),
    st.sampled_from(FLAGS).map(lambda name: f"{name}=x"),
    st.sampled_from(["1", "-1", "0.5", "on", "none", "/etc/passwd", "x=CPU", "", "--", "-", "yarn"]),
    st.text(max_size=6),
)


@settings(max_examples=150)
@given(st.lists(WORDS, max_size=6).map(tuple))
def test_nothing_that_passes_holds_a_flag_of_the_platform(args: tuple[str, ...]) -> None:
    try:
        passed = check_extra_args(args, CURRENT)
    except InvalidRequest:
        return
    assert not set(flags_in(passed, CURRENT)) & set(OWNED)
