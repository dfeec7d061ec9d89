"""``python -m xgen_ray`` is ``xgen-ray``."""

from xgen_ray.cli import main

main()
