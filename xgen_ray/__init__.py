"""LLM serving on Ray for fleets of unlike machines."""

__version__ = "0.1.0"
