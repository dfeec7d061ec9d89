"""What a chat template, read as text, can do."""

import re

# A name that stands alone: `tools`, but neither `tools_intro` nor `builtin_tools`.
_TOOLS = re.compile(r"(?<![\w.\"'])tools\b")


def renders_tools(name: str, text: str) -> bool:
    """Whether the template ``name`` puts the request's tools into the prompt, judged by its text.

    A template called ``tool_use`` exists for nothing else.
    """
    return name == "tool_use" or _TOOLS.search(text) is not None
