"""The program ``xgen-ray``: its commands, its help, and where errors become exit codes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from xgen_ray import __version__
from xgen_ray.cli import options, output
from xgen_ray.cli.apply import apply
from xgen_ray.cli.bench import bench
from xgen_ray.cli.chat import chat
from xgen_ray.cli.detect import detect
from xgen_ray.cli.doctor import doctor
from xgen_ray.cli.drain import drain
from xgen_ray.cli.exits import CommandError, ExitCode, code_of_error
from xgen_ray.cli.lift import lift
from xgen_ray.cli.load import load
from xgen_ray.cli.logs import logs
from xgen_ray.cli.node import node
from xgen_ray.cli.nodes import nodes
from xgen_ray.cli.plan import plan
from xgen_ray.cli.ps import ps
from xgen_ray.cli.scale import scale
from xgen_ray.cli.unload import unload
from xgen_ray.cli.up import up
from xgen_ray.errors import XgenRayError

_EPILOG = """
Exit codes:

  0    all is well
  1    it failed: a load that ended badly, an engine that died
  2    the request is at fault: usage, an unknown model, a bad file
  3    no server can be reached
  4    not authorised: no API key, a wrong one, or one that may not do this
  5    refused by placement: nothing here can run the model
  6    timed out; what was asked for may still go on
  130  interrupted
"""


class Commands(TyperGroup):
    """All commands. The one place where what they raise becomes a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        with _errors_told():
            return super().invoke(ctx)


@contextmanager
def _errors_told() -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        _tell(error.message, error.hint)
        raise typer.Exit(error.exit_code) from None
    except XgenRayError as error:
        _tell(error.message, None)
        raise typer.Exit(code_of_error(error)) from None
    except KeyboardInterrupt:
        # The shell's prompt belongs on a line of its own.
        output.stderr().print()
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _tell(message: str, hint: str | None) -> None:
    console = output.stderr()
    console.print(f"error: {output.plain(message)}", style="red")
    if hint:
        console.print(output.plain(hint))


app = typer.Typer(
    name="xgen-ray",
    cls=Commands,
    no_args_is_help=True,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    # Plain tracebacks: the pretty ones can print the values of variables, a key among them.
    pretty_exceptions_enable=False,
)

_SERVE = "Server"
_LOOK = "Before a load"
_MODELS = "Models"
_USE = "Inference"

app.command(rich_help_panel=_SERVE)(up)
app.command(rich_help_panel=_SERVE)(node)
app.command(rich_help_panel=_SERVE)(apply)
app.command(rich_help_panel=_SERVE)(nodes)
app.command(rich_help_panel=_SERVE)(drain)
app.command(rich_help_panel=_LOOK)(detect)
app.command(rich_help_panel=_LOOK)(doctor)
app.command(rich_help_panel=_LOOK, epilog=options.option_list())(plan)
app.command(rich_help_panel=_MODELS, epilog=options.option_list())(load)
app.command(rich_help_panel=_MODELS)(scale)
app.command(rich_help_panel=_MODELS)(unload)
app.command(rich_help_panel=_MODELS)(ps)
app.command(rich_help_panel=_MODELS)(logs)
app.command(rich_help_panel=_MODELS)(lift)
app.command(rich_help_panel=_USE)(chat)
app.command(rich_help_panel=_USE)(bench)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"xgen-ray {__version__}\n")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar=options.FLAG, help="Show the version.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Serve LLMs on NVIDIA, AMD and plain CPUs behind one OpenAI-compatible endpoint.

    Start a server and talk to a model:

      xgen-ray up --load model.gguf
      xgen-ray chat -m "Why is the sky blue?"

    See what would run where, and why:

      xgen-ray detect
      xgen-ray plan hf:org/name --context 8192
    """


def main() -> None:
    """Run the program and leave the process with its exit code."""
    app(prog_name="xgen-ray")
