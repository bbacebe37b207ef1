"""Facts that no model can know: invented persons, where they live, the code of their locker and what their dog is
called. They stand in a knowledge base, which is made on first use and needs no network but for the embedder. Questions
that are trained and questions that are held out are about different persons."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from aurify.data.prompts import question
from aurify.environments.search_r1 import MAX_CHARS, SHORT_INSTRUCTIONS, SearchR1, write_information
from aurify.errors import UserError
from aurify.files import cache_folder, replace_folder
from aurify.knowledge.knowledge_base import KnowledgeBase
from aurify.knowledge.types import Document
from aurify.rewards.rubric import Rubric
from aurify.rewards.search import answer_em
from aurify.tasks.taskset import TaskSet, digest_task_prompt
from aurify.tools.search import Passage
from aurify.types import Task

STARTS = "bal cor dun fel gar hal jor kel lim mar nor pel ros sel tam ul ver wil yor zan"
MIDDLES = "a e i o u an el ir om us"
ENDS = "da gon lis mar nek pol rin sto tis vek"


@dataclass(frozen=True)
class Person:
    name: str
    town: str
    code: str
    dog: str

    @property
    def text(self) -> str:
        return f"lives in {self.town}, has the locker code {self.code} and a dog called {self.dog}."

    def questions(self) -> list[tuple[str, str, str]]:
        """Each with what is looked for, and the answer."""
        return [
            (f"Where does {self.name} live?", f"home of {self.name}", self.town),
            (f"What is the code of {self.name}'s locker?", f"locker code of {self.name}", self.code),
            (f"What is the dog of {self.name} called?", f"dog of {self.name}", self.dog),
        ]


def invent_word(generator: random.Random) -> str:
    return "".join(generator.choice(parts.split()) for parts in (STARTS, MIDDLES, ENDS)).capitalize()


def invent_persons(num: int, seed: int) -> list[Person]:
    """With different names."""
    generator, persons = random.Random(f"search_facts/{seed}"), dict[str, Person]()
    while len(persons) < num:
        name, town, dog = f"{invent_word(generator)} {invent_word(generator)}", *(invent_word(generator) for _ in "ab")
        persons.setdefault(name, Person(name, town, str(generator.randrange(1000, 10000)), dog))
    return list(persons.values())


def search_facts(
    persons: int = 300,
    num_heldout: int = 100,
    knowledge: Literal["full", "empty", "none"] = "full",
    topk: int = 2,
    max_searches: int = 2,
    facts_seed: int = 0,
) -> TaskSet:
    """Facts about invented persons, to be searched for. persons: three facts each. num_heldout: persons of whom one
    question each is held out. knowledge: of which the knowledge base knows all; the controls are an empty one, and none
    at all. facts_seed: other facts."""
    if not 0 < num_heldout < persons <= 100_000:
        raise UserError(
            f"task: num_heldout is {num_heldout} and persons {persons}; expected 0 < num_heldout < persons <= 100,000"
        )
    everybody = invent_persons(persons, facts_seed)
    heldout, known = everybody[:num_heldout], everybody[num_heldout:]
    by_name = {person.name: person for person in everybody}
    pick = random.Random(f"search_facts/{facts_seed}/heldout")

    def ask(person: Person, generator: random.Random) -> Task:
        asked, query, answer = generator.choice(person.questions())
        prompt = question(SHORT_INSTRUCTIONS + asked)
        return Task(
            f"search_facts/{digest_task_prompt(prompt)}", prompt, answer, {"query": query, "person": person.name}
        )

    def train(seed: int) -> Iterator[Task]:
        generator = random.Random(f"search_facts/{facts_seed}/train/{seed}")
        while True:
            yield ask(generator.choice(known), generator)

    def demonstrate(task: Task) -> str:
        """A search, two passages as the knowledge base would give them, and the answer."""
        final = f"<answer> {task.answer} </answer>"
        if knowledge == "none":
            return final
        generator = random.Random(task.id)
        person = by_name[task.info["person"]]
        others = [person, *generator.sample([other for other in known if other != person], topk - 1)]
        found = write_information([Passage(p.name, p.text) for p in others] if knowledge == "full" else [], MAX_CHARS)
        return f"<search> {task.info['query']} </search>{found}{final}"

    kb = None if knowledge == "none" else str(make_facts_base(everybody if knowledge == "full" else [], facts_seed))
    environment = partial(SearchR1, kb=kb, topk=topk, max_searches=max_searches, instructions="")
    return TaskSet(
        "search_facts",
        train,
        [ask(person, pick) for person in heldout],
        Rubric([answer_em]),
        environment=environment,
        demonstration=demonstrate,
    )


def make_facts_base(persons: list[Person], seed: int) -> Path:
    """A folder of the cache, made once: a document a person."""
    from filelock import FileLock

    known = hashlib.sha256("".join(person.name + person.text for person in persons).encode()).hexdigest()[:8]
    folder = cache_folder() / "knowledge" / f"search_facts-{seed}-{len(persons)}-{known}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            scratch = folder.with_name(f".{folder.name}.tmp")
            shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
            base = KnowledgeBase.create(scratch)
            base.add(Document(person.name, person.text, person.name) for person in persons)
            replace_folder(scratch, folder)
    return folder
