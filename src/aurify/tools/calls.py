"""Stand-in until the shared parser is merged."""

import json
import re
from typing import Any


def read_tool_calls(text: str) -> list[dict[str, Any]]:
    found = []
    for n, body in enumerate(re.findall(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL)):
        try:
            call = json.loads(body)
            found.append(
                {
                    "id": f"call{n:05d}",
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
            )
        except (ValueError, KeyError, TypeError) as error:
            found.append(
                {
                    "id": f"call{n:05d}",
                    "type": "function",
                    "function": {"name": "", "arguments": {}},
                    "problem": f"the call cannot be read: {error}",
                }
            )
    return found
