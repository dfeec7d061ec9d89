"""What ``FAKE_VLLM`` may hold:

cuda, rocm    what it was built for; otherwise the CPU
no-device     its libraries find no GPU, so it would run as UnspecifiedPlatform
broken        it cannot be imported
old-help      its help knows no groups, as older versions
crash         the server ends while it loads, with what a killed worker leaves behind
deaf          the server does not end when it is told to
"""

import os

WORDS = frozenset(os.environ.get("FAKE_VLLM", "").split(","))

if "broken" in WORDS:
    raise ImportError("libcudart.so.13: cannot open shared object file")
