"""A fixed load on an OpenAI-compatible endpoint, measured from the client's side.

Works against anything that streams ``/v1/chat/completions``: xgen-ray, a bare llama-server, vLLM.

Why own code: the maintained generators are built for wide studies and weigh accordingly. A fresh
install of guidellm 0.8 brings 97 packages with torch, transformers and pyarrow among them; aiperf 0.13
brings 139; vLLM's own benchmark needs vLLM. locust and k6 know requests, not tokens. What is needed
here, a closed loop whose result two endpoints can be compared by, is the few hundred lines below on an
HTTP client that is installed anyway.

``load`` is the part that asks. It is imported by its own name: it brings the HTTP client along, which
those who only read reports can do without.
"""

from xgen_ray.bench.report import as_json, render
from xgen_ray.bench.stats import LevelReport, Outcome, RunReport, Spread, spread, summarise
from xgen_ray.bench.workload import Target, Workload

__all__ = [
    "LevelReport",
    "Outcome",
    "RunReport",
    "Spread",
    "Target",
    "Workload",
    "as_json",
    "render",
    "spread",
    "summarise",
]
