"""``chat``: talk to a model, in turns or with one message."""

import sys
from typing import Annotated

import typer

from xgen_ray.cli import options, output
from xgen_ray.cli.client import Server
from xgen_ray.cli.conversation import Conversation
from xgen_ray.cli.exits import CommandError, ExitCode

_COMMANDS = """\
/reset          forget what was said
/system TEXT    set the system message (no text: none)
/help           show this
/quit           leave (Ctrl-D does, too)
Ctrl-C stops an answer."""


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", show_default=False, help="A served model; the only one, if left out."
        ),
    ] = None,
    message: Annotated[
        str | None,
        typer.Option("--message", "-m", help="Say this, print the answer and leave.", show_default=False),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="The system message.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Longest answer.", show_default=False)
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", min=0, max=5, help="0: always the same.", show_default=False),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=1, metavar="SECONDS", help="Longest silence of the server, in seconds."
        ),
    ] = 300,
    url: options.Url = options.DEFAULT_URL,
    api_key: options.ApiKey = None,
    as_json: options.Json = False,
) -> None:
    """Talk to a model.

    With -m, or with text on stdin, it answers once and leaves; the answer
    alone goes to stdout. Works against any OpenAI-compatible server.

    Examples:

      xgen-ray chat
      xgen-ray chat small -m "Why is the sky blue?"
      cat notes.txt | xgen-ray chat small --system "Sum this up."
    """
    settings = {"max_tokens": max_tokens, "temperature": temperature}
    once = message
    if once is None and not sys.stdin.isatty():
        once = sys.stdin.read()
    if once is None and as_json:
        raise CommandError(ExitCode.USAGE, "--json needs -m or text on stdin: a conversation has no JSON.")
    if once is not None and not once.strip():
        raise CommandError(ExitCode.USAGE, "There is nothing to say: the message is empty.")
    with Server(url, api_key, timeout_s=timeout) as server:
        conversation = Conversation(
            server,
            model or _only_model(server),
            {name: value for name, value in settings.items() if value is not None},
            system,
        )
        if once is not None:
            _answer_once(conversation, once, as_json=as_json)
        else:
            _converse(conversation)


def _only_model(server: Server) -> str:
    names = server.model_names()
    if len(names) == 1:
        return names[0]
    if not names:
        raise CommandError(
            ExitCode.USAGE, f"{server.url} serves no model.", "Load one with `xgen-ray load MODEL`."
        )
    message = f"{server.url} serves {len(names)} models: {', '.join(names)}. Say which."
    raise CommandError(ExitCode.USAGE, message)


def _answer_once(conversation: Conversation, text: str, *, as_json: bool) -> None:
    answer = conversation.say(text, _ignore if as_json else _write)
    if as_json:
        output.print_json({"model": conversation.model, **answer.as_json()})
    else:
        _write("\n")
        _tell_figures(answer.figures())
    if answer.finish_reason == "stopped":
        raise typer.Exit(ExitCode.INTERRUPTED)


def _converse(conversation: Conversation) -> None:
    """Read and answer until the end of input. An error is told and leaves the conversation standing."""
    _enable_line_editing()
    hints = output.stderr()
    hints.print(f"{conversation.model} at {conversation.server.url}. /help shows the commands.", style="dim")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            _write("\n")
            return
        except KeyboardInterrupt:
            # As in a shell: the line is dropped, the program goes on.
            _write("\n")
            continue
        if text in ("/quit", "/exit"):
            return
        if text.startswith("/"):
            hints.print(_obey(conversation, text), style="dim")
        elif text:
            _take_turn(conversation, text)


def _take_turn(conversation: Conversation, text: str) -> None:
    try:
        answer = conversation.say(text, _write)
    except CommandError as error:
        _write("\n")
        output.stderr().print(f"error: {output.plain(error.message)}", style="red")
        return
    _write("\n")
    _tell_figures(answer.figures())


def _obey(conversation: Conversation, text: str) -> str:
    command, _, rest = text.partition(" ")
    match command:
        case "/reset":
            conversation.reset()
            return "forgotten"
        case "/system":
            conversation.system = rest.strip() or None
            return "the system message is set" if conversation.system else "no system message"
        case "/help":
            return _COMMANDS
        case _:
            return f"There is no {command}.\n{_COMMANDS}"


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401 - its import alone gives input() history and editing
    except ImportError:
        # A Python built without it reads lines all the same.
        return


def _tell_figures(text: str) -> None:
    console = output.stderr()
    if console.is_terminal:
        console.print(text, style="dim")


def _write(text: str) -> None:
    sys.stdout.write(output.plain(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _ignore(text: str) -> None:
    """Show nothing."""
