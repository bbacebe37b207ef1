"""The text of a PDF, page by page, read in a process of its own with bounded memory and time: whatever a hostile file
does to the parser (endless loops, streams that unpack to gigabytes, crashes) ends there.

This file is also that process. It is started by its path, and so imports nothing of Aurify at the top.
"""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

MEMORY = 2 << 30  # bytes of address space
SECONDS = 120.0
NO_TEXT = "PDF without text (scanned pages?)"


@dataclass(frozen=True)
class PdfText:
    pages: tuple[str, ...]
    title: str = ""


class UnreadablePdf(Exception):
    """The reason, without what is particular to the file."""


def read_pdf(data: bytes, max_chars: int, seconds: float = SECONDS) -> PdfText:
    require_pypdf()
    command = [sys.executable, "-P"]  # -P: types.py beside this file is not Python's
    command += [__file__, str(max_chars), str(math.ceil(seconds))]
    try:
        child = subprocess.run(command, input=data, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise UnreadablePdf("PDF that takes too long to read") from None
    try:
        answer = json.loads(child.stdout)
    except ValueError:
        raise UnreadablePdf("PDF that takes too much memory or time to read") from None
    if "error" in answer:
        raise UnreadablePdf(answer["error"])
    return PdfText(tuple(answer["pages"]), answer["title"])


def require_pypdf() -> None:
    from importlib.util import find_spec

    from aurify.errors import UserError

    if find_spec("pypdf") is None:
        raise UserError("to read PDF files, install pypdf with: pip install 'aurify[memory]'")


def extract(data: bytes, max_chars: int) -> dict[str, Any]:
    import logging

    from pypdf import PdfReader
    from pypdf.errors import LimitReachedError

    logging.disable()
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            return {"error": "PDF that asks for a password"}
        pages: list[str] = []
        num_chars = 0
        for page in reader.pages:
            pages.append(page.extract_text())
            num_chars += len(pages[-1])
            if num_chars > max_chars:
                return {"error": f"PDF with more than {max_chars:,} characters"}
        title = str((reader.metadata and reader.metadata.title) or "")
    except (LimitReachedError, MemoryError):
        return {"error": "PDF that unpacks to more than is allowed"}
    except Exception:  # broken objects make the parser raise all kinds of errors
        return {"error": "damaged PDF"}
    return {"pages": pages, "title": title} if any(map(str.strip, pages)) else {"error": NO_TEXT}


def main() -> None:
    max_chars, seconds = int(sys.argv[1]), int(sys.argv[2])
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    except ImportError:  # Windows: there the time limit alone holds
        pass
    json.dump(extract(sys.stdin.buffer.read(), max_chars), sys.stdout)


if __name__ == "__main__":
    main()
