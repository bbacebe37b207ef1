"""A folder of procedures: finds the one that a question asks for, and puts it into a system prompt."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from aurify import config
from aurify.bounds import Checked, Interval, PositiveInt, Share
from aurify.config import did_you_mean
from aurify.errors import UserError
from aurify.knowledge.embedding import MINILM, load_embedder
from aurify.knowledge.fusion import fuse_scores
from aurify.knowledge.types import Embedder
from aurify.procedures.procedure import SUFFIXES, Procedure, read_procedure

log = logging.getLogger("aurify")
ONE = "Follow this procedure. Do its steps in order, and leave none out."
SEVERAL = "Choose the procedure that fits, and follow it. Do its steps in order, and leave none out."
WORD = re.compile(r"\w+")
STOP_WORDS = frozenset(
    WORD.findall(
        "a an and are as at be by can do does for from has have how i in is it many me much my of on or our please "
        "that the their this to use want wants was we what when which who will with you your"
    )
)


@dataclass(frozen=True, slots=True)
class SOPOptions(Checked):
    """`sop:` of a task: a folder, or these."""

    folder: str
    limit: PositiveInt = 2  # procedures in one prompt
    max_tokens: PositiveInt = 1000  # of all of them; one that does not fit is left out whole, and said
    # cosine to a question below which a procedure is not meant (without an embedder: any word)
    least: Annotated[float, Interval(ge=-1, le=1)] = 0.3
    dense_weight: Share = 0.8  # the rest is that of the words
    embedder: str | None = MINILM  # None: by words alone, without sentence-transformers


@dataclass(frozen=True, slots=True)
class Match:
    procedure: Procedure
    score: float  # orders them
    scores: Mapping[str, float]  # of each stage: "dense" (cosine), "bm25"


class SOPLibrary:
    """embedder: instead of the one that the options name."""

    def __init__(self, options: SOPOptions | str, embedder: Embedder | None = None) -> None:
        self.options = SOPOptions(options) if isinstance(options, str) else options
        self.procedures = read_folder(Path(self.options.folder).expanduser())
        self._embedder = embedder
        self._vectors: list[np.ndarray] | None = None  # of each procedure [triggers, dim]
        self._words = BM25([words_of(" ".join(procedure.asked_by)) for procedure in self.procedures])
        self._left_out: set[str] = set()  # said once each

    def __getitem__(self, name: str) -> Procedure:
        for procedure in self.procedures:
            if procedure.name == name:
                return procedure
        known = [procedure.name for procedure in self.procedures]
        raise UserError(f"there is no procedure {name!r} in {self.options.folder}{did_you_mean(name, known)}")

    def find(self, query: str, limit: int | None = None, tools: Collection[str] | None = None) -> list[Match]:
        """Those that are meant, best first, by meaning and by words. tools: those at hand; a procedure that needs
        others is not found. None: whatever it needs is there."""
        usable = [
            place
            for place, procedure in enumerate(self.procedures)
            if tools is None or set(procedure.tools) <= set(tools)
        ]
        words = self._words.scores(words_of(query))
        scores = {"bm25": {place: words[place] for place in usable if words[place] > 0}}
        if self.options.embedder is not None or self._embedder is not None:
            scores["dense"] = {place: value for place, value in enumerate(self._likeness(query)) if place in usable}
            meant = {place for place, value in scores["dense"].items() if value >= self.options.least}
        else:
            meant = set(scores["bm25"])
        lists = {stage: sorted(found.items(), key=lambda item: (-item[1], item[0])) for stage, found in scores.items()}
        weights = {"dense": self.options.dense_weight, "bm25": 1 - self.options.dense_weight}
        order = fuse_scores(lists, weights if "dense" in lists else {"bm25": 1.0})
        matches = []
        for place, score in order:
            if place in meant:
                parts = {stage: found[place] for stage, found in scores.items() if place in found}
                matches.append(Match(self.procedures[place], score, parts))
        return matches[: limit or self.options.limit]

    def system_prompt(
        self,
        query: str,
        base: str = "",
        tools: Collection[str] | None = None,
        count_tokens: Callable[[str], int] | None = None,
    ) -> str:
        """`base`, and below it the procedures that the query asks for; `base` alone where there are none.
        count_tokens: of the model's tokenizer; else four characters count as a token."""
        return self.prompt_of([match.procedure for match in self.find(query, tools=tools)], base, count_tokens)

    def prompt_of(
        self, procedures: Sequence[Procedure], base: str = "", count_tokens: Callable[[str], int] | None = None
    ) -> str:
        """`base`, and below it as many of these, the first ones first, as the budget of tokens holds."""
        chosen, room = [], self.options.max_tokens
        for procedure in procedures:
            text = procedure.prompt()
            num = count_tokens(text) if count_tokens else math.ceil(len(text) / 4)
            if num <= room:
                chosen.append(text)
                room -= num
            elif procedure.name not in self._left_out:
                self._left_out.add(procedure.name)
                log.warning(
                    "procedure %s has %d tokens, more than what is left of sop.max_tokens (%d): left out",
                    procedure.name,
                    num,
                    room,
                )
        parts = [base, ONE if len(chosen) == 1 else SEVERAL, *chosen] if chosen else [base]
        return "\n\n".join(part for part in parts if part)

    def _likeness(self, query: str) -> list[float]:
        """The cosine of each procedure's nearest trigger."""
        if self._embedder is None:
            self._embedder = embedder_of(self.options.embedder or MINILM)
        if self._vectors is None:
            self._vectors = [self._embedder.embed_documents(procedure.asked_by) for procedure in self.procedures]
        [asked] = self._embedder.embed_queries([query])
        return [float((vectors @ asked).max()) for vectors in self._vectors]


@cache
def embedder_of(name: str) -> Embedder:
    """Loaded once a process, however many task sets ask for it."""
    return load_embedder(name)


def open_library(entry: Any) -> SOPLibrary:
    """From a recipe: a folder, or {folder: ..., options}."""
    values = {"folder": entry} if isinstance(entry, str) else entry
    if not isinstance(values, Mapping) or "folder" not in values:
        raise UserError(f"sop: {entry!r}; expected a folder of procedures, or {{folder: ..., limit: ...}}")
    return SOPLibrary(config.build(SOPOptions, values, "sop"))


def read_folder(folder: Path) -> list[Procedure]:
    """All of them, by name. One that cannot be used is an error."""
    read = list(checked(folder))
    for path, _, problems in read:
        if problems:
            others = sum(len(found) for _, _, found in read) - 1
            more = f" (and {others} more; `aurify sop check {folder}` names them all)" if others else ""
            raise UserError(f"{path}: {problems[0]}{more}")
    return sorted((procedure for _, procedure, _ in read if procedure), key=lambda procedure: procedure.name)


def checked(folder: Path) -> list[tuple[Path, Procedure | None, list[str]]]:
    """Each file of a folder with its procedure and its problems. README.md is for people."""
    if not folder.is_dir():
        raise UserError(f"sop: there is no folder {folder}; expected one with procedures ({', '.join(SUFFIXES)})")
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES and path.name != "README.md"]
    if not paths:
        raise UserError(f"sop: {folder} has no procedures; expected files ending in {', '.join(SUFFIXES)}")
    read = [(path, *read_procedure(path)) for path in paths]
    first: dict[str, Path] = {}
    for path, procedure, problems in read:
        if procedure and first.setdefault(procedure.name, path) != path:
            problems.append(f"its name {procedure.name!r} is that of {first[procedure.name]} too")
    return read


def words_of(text: str) -> list[str]:
    return [word for word in WORD.findall(text.lower()) if word not in STOP_WORDS]


class BM25:
    """Okapi BM25 (Robertson and Zaragoza 2009) over a few short texts."""

    def __init__(self, texts: Sequence[Sequence[str]], k1: float = 1.2, b: float = 0.75) -> None:
        self.counts = [Counter(words) for words in texts]
        mean = sum(map(len, texts)) / max(1, len(texts)) or 1.0
        self.norms = [k1 * (1 - b + b * len(words) / mean) for words in texts]
        self.k1 = k1
        found_in = Counter(word for counts in self.counts for word in counts)
        self.idf = {word: math.log(1 + (len(texts) - num + 0.5) / (num + 0.5)) for word, num in found_in.items()}

    def scores(self, words: Sequence[str]) -> list[float]:
        return [
            math.fsum(
                self.idf[word] * counts[word] * (self.k1 + 1) / (counts[word] + norm)
                for word in dict.fromkeys(words)
                if word in counts
            )
            for counts, norm in zip(self.counts, self.norms, strict=True)
        ]
