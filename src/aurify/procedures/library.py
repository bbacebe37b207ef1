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
BY_HAND = (
    "You cannot call tools here. Where a step names a tool, ask the user to do that step and to tell you the result, "
    "before you go on."
)
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
        self.procedures = read_procedure_folder(Path(self.options.folder).expanduser())
        self._embedder = embedder
        self._vectors: list[np.ndarray] | None = None  # of each procedure [triggers, dim]
        self._words = BM25([list_procedure_terms(" ".join(procedure.asked_by)) for procedure in self.procedures])
        self._left_out: set[str] = set()  # the log names each once

    def __getitem__(self, name: str) -> Procedure:
        for procedure in self.procedures:
            if procedure.name == name:
                return procedure
        known = [procedure.name for procedure in self.procedures]
        raise UserError(f"there is no procedure {name!r} in {self.options.folder}{did_you_mean(name, known)}")

    def find(self, query: str, limit: int | None = None, tools: Collection[str] | None = None) -> list[Match]:
        """The procedures that a question asks for, best first, by meaning and by words. tools: those at hand; a
        procedure that needs others is not found. None: all tools are there."""
        usable = [index for index, one in enumerate(self.procedures) if tools is None or set(one.tools) <= set(tools)]
        words = self._words.scores(list_procedure_terms(query))
        scores = {"bm25": {index: words[index] for index in usable if words[index] > 0}}
        meant, weights = set(scores["bm25"]), {"bm25": 1.0}
        if self.options.embedder is not None or self._embedder is not None:
            cosines = self._cosines(query)
            scores["dense"] = {index: cosines[index] for index in usable}
            meant = {index for index in usable if cosines[index] >= self.options.least}
            weights = {"dense": self.options.dense_weight, "bm25": 1 - self.options.dense_weight}
        lists = {stage: sorted(found.items(), key=lambda item: (-item[1], item[0])) for stage, found in scores.items()}
        matches = []
        for index, score in fuse_scores(lists, weights):
            if index in meant:
                parts = {stage: found[index] for stage, found in scores.items() if index in found}
                matches.append(Match(self.procedures[index], score, parts))
        return matches[: limit or self.options.limit]

    def system_prompt(
        self,
        query: str,
        base: str = "",
        tools: Collection[str] | None = None,
        count_tokens: Callable[[str], int] | None = None,
    ) -> str:
        """`base`, and below it the procedures that the query asks for; `base` alone where there are none."""
        return self.build_prompt([match.procedure for match in self.find(query, tools=tools)], base, count_tokens)

    def build_prompt(
        self,
        procedures: Sequence[Procedure],
        base: str = "",
        count_tokens: Callable[[str], int] | None = None,
        has_tools: bool = True,
    ) -> str:
        """`base`, and below it as many of these procedures, the first ones first, as the budget of tokens holds.
        count_tokens: of the model's tokenizer; else four characters count as a token. Without tools, the model is told
        to ask the user for what they would do."""
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
        by_hand = BY_HAND if not has_tools and any(procedure.tools for procedure in procedures) else ""
        parts = [base, ONE if len(chosen) == 1 else SEVERAL, by_hand, *chosen] if chosen else [base]
        return "\n\n".join(part for part in parts if part)

    def _cosines(self, query: str) -> list[float]:
        """Of each procedure's nearest trigger."""
        if self._embedder is None:
            self._embedder = share_procedure_embedder(self.options.embedder or MINILM)
        if self._vectors is None:
            self._vectors = [self._embedder.embed_documents(procedure.asked_by) for procedure in self.procedures]
        [asked] = self._embedder.embed_queries([query])
        return [float((vectors @ asked).max()) for vectors in self._vectors]


@cache
def share_procedure_embedder(name: str) -> Embedder:
    """Loaded once a process, however many task sets ask for it."""
    return load_embedder(name)


def open_procedure_library(entry: Any) -> SOPLibrary:
    """From a recipe: a folder, or {folder: ..., options}."""
    values = {"folder": entry} if isinstance(entry, str) else entry
    if not isinstance(values, Mapping) or "folder" not in values:
        raise UserError(f"sop: {entry!r}; expected a folder of procedures, or {{folder: ..., limit: ...}}")
    return SOPLibrary(config.build_options(SOPOptions, values, "sop"))


def read_procedure_folder(folder: Path) -> list[Procedure]:
    """All procedures, by name. One that cannot be used is an error."""
    read = check_procedure_folder(folder)
    faults = [(path, problem) for path, _, problems in read for problem in problems]
    if faults:
        path, problem = faults[0]
        more = f" (and {len(faults) - 1} more; `aurify sop check {folder}` names them all)" if len(faults) > 1 else ""
        raise UserError(f"{path}: {problem}{more}")
    return sorted((procedure for _, procedure, _ in read if procedure), key=lambda procedure: procedure.name)


def check_procedure_folder(folder: Path) -> list[tuple[Path, Procedure | None, list[str]]]:
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


def list_procedure_terms(text: str) -> list[str]:
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
