"""Whether a node is fit to serve: what was looked at, what was found, and what to do about it.

``gather`` looks, ``examine`` judges; see README.md beside this file.
"""

from xgen_ray.doctor.examination import CHECKS, examine, worst
from xgen_ray.doctor.facts import Head, NodeFacts
from xgen_ray.doctor.findings import Finding, Level
from xgen_ray.doctor.gather import Questions, gather

__all__ = ["CHECKS", "Finding", "Head", "Level", "NodeFacts", "Questions", "examine", "gather", "worst"]
