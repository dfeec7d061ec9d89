"""Where our own log lines go inside Ray: to the worker's log file, beside Ray's own."""

import logging


def log_transitions() -> None:
    """Show INFO and above of ours. Ray sets no handler up for others than itself."""
    ours = logging.getLogger("xgen_ray")
    ours.setLevel(logging.INFO)
    if not ours.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        ours.addHandler(handler)
