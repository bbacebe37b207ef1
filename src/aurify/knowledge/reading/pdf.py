"""The text of a PDF, page by page, read in a process of its own with bounded memory and time: whatever a hostile file
does to the parser (endless loops, streams that unpack to gigabytes, crashes) ends there.

This file is also that process. It is started by its path, so it imports nothing of Aurify at the top.
"""

from __future__ import annotations

import io
import json
import logging
import math
import re
import subprocess
import sys

MEMORY = 2 << 30  # bytes of address space
SECONDS = 120.0
HYPHEN = re.compile(r"(?<=[a-z])-\n(?=[a-z])")


def read_pdf(data: bytes, max_chars: int, seconds: float = SECONDS) -> tuple[str, str]:
    """(Markdown with a heading for each page, so that a passage says where it stands; title). Raises `Refused`."""
    from aurify.files import require
    from aurify.knowledge.reading.refusals import Refused

    require("pypdf", "memory", "to read PDF files")
    command = [sys.executable, "-P"]  # -P: modules beside this file must not hide Python's own
    command += [__file__, str(max_chars), str(math.ceil(seconds))]
    try:
        child = subprocess.run(command, input=data, capture_output=True, timeout=seconds)
        answer = json.loads(child.stdout)
    except subprocess.TimeoutExpired:
        raise Refused("PDF that takes too long to read") from None
    except ValueError:
        raise Refused("PDF that takes too much memory or time to read") from None
    if "error" in answer:
        raise Refused(answer["error"])
    pages = [(number, HYPHEN.sub("", text).strip()) for number, text in enumerate(answer["pages"], 1)]
    return "\n\n".join(f"# Page {number}\n\n{text}" for number, text in pages if text), answer["title"]


def extract_pdf_pages(data: bytes, max_chars: int) -> dict[str, object]:
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
    return {"pages": pages, "title": title} if num_chars else {"error": "PDF without text (scanned pages?)"}


def main() -> None:
    max_chars, seconds = int(sys.argv[1]), int(sys.argv[2])
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    except ImportError:  # Windows: there the time limit alone holds
        pass
    json.dump(extract_pdf_pages(sys.stdin.buffer.read(), max_chars), sys.stdout)


if __name__ == "__main__":
    main()
