"""A knowledge base in twenty lines: build one from Aurify's own documentation, search it, see why a hit is one, and put
the procedure that a question asks for into a prompt.

    python examples/memory.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from aurify.knowledge.knowledge_base import KnowledgeBase
from aurify.knowledge.types import Document
from aurify.procedures.library import SOPLibrary

HERE = Path(__file__).parent

with TemporaryDirectory() as folder:
    base = KnowledgeBase.create(f"{folder}/docs")
    pages = sorted((HERE.parent / "docs").glob("*.md"))
    print(base.add(Document(page.name, page.read_text(), page.stem, "markdown") for page in pages))
    for hit in base.search("What is a sandbox: which files of the host can generated code read?", limit=3):
        print(f"\n{hit.chunk.document}, line {hit.chunk.first_line}: {' > '.join(hit.chunk.breadcrumb)}")
        stages = (f"{stage} {score:.3f} (rank {hit.ranks.get(stage, '-')})" for stage, score in hit.scores.items())
        print(f"score {hit.score:.3f}: {', '.join(stages)}\n{hit.chunk.text[:200]}")
    library = SOPLibrary(str(HERE / "sop"), base.embedder)
    print("\n" + library.system_prompt("My lamp came broken, I want my cash back", base="You are a friendly clerk."))
