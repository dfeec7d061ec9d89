"""The command line, ``xgen-ray``: one module a command, most of them clients of a running server.

Exit codes are in ``exits``; ``xgen-ray --help`` shows them. Settings from the environment are read
here, by the options that name them.
"""

from xgen_ray.cli.app import app, main

__all__ = ["app", "main"]
