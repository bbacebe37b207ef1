"""A reward for answering in a given language: by the script of the letters, and between languages of the Latin script
by their commonest words. Good enough to keep a policy from drifting; no judge of a single sentence."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from aurify.errors import UserError
from aurify.types import Task, Trajectory

SCRIPTS = {  # language -> beginnings of the Unicode names of its letters
    "ar": ("ARABIC",), "el": ("GREEK",), "he": ("HEBREW",), "hi": ("DEVANAGARI",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"), "ko": ("HANGUL",), "ru": ("CYRILLIC",), "th": ("THAI",),
    "uk": ("CYRILLIC",), "zh": ("CJK",),
}  # fmt: skip
COMMON = {
    "de": """
        aber als auch auf aus bei das dass dem den der des die ein eine einen es für hat ich im ist mit nach
        nicht noch oder sich sie sind so um und von war was wenn werden wie wir zu zum
    """,
    "en": """
        a all an and are as at be but by can for from had has have he his i if in is it not of on or so that
        the there they this to was we what when which will with you
    """,
    "es": """
        al como con cuando de del el ella en entre es esta está este fue ha hay la las lo los más muy no o
        para pero por porque que se ser si sin son su también un una y ya
    """,
    "fr": """
        au aux avec ce cette comme dans de des du elle en est et il ils je la le les leur mais ne nous on ou
        par pas plus pour que qui sa se ses son sont sur un une vous
    """,
    "it": """
        al alla anche che ci come con da dal dei del della di e è gli ha i il in io la le lo ma nel nella
        non o per perché più quando questo se si sono su sua un una
    """,
    "nl": """
        aan als bij dan dat de die dit door een en er het hij ik in is je maar met naar niet nog of om ook
        op te tot uit van voor was wat we wel wordt ze zijn
    """,
    "pt": """
        a ao as com como da das de do dos e é ela ele em entre era essa esta eu foi há isso mais mas muito
        na não nas no nos o os ou para pela pelo por que se sem ser seu sua também um uma
    """,
}
WORDS = {language: frozenset(words.split()) for language, words in COMMON.items()}
LATIN_ENOUGH = 5  # words, below which common words decide nothing


def language(code: str = "en") -> Callable[[Task, Trajectory], float | None]:
    """From 0 to 1: the share of the reply's letters in the script of the language (code as in ISO 639-1); for languages
    of the Latin script that times 1 if its common words are the most frequent ones, else 0. None for replies without a
    letter. Code blocks do not count."""
    if code not in SCRIPTS and code not in WORDS:
        known = ", ".join(sorted([*SCRIPTS, *WORDS]))
        raise UserError(f"reward 'language': {code!r} is not among the languages it can tell: {known}")
    scripts = SCRIPTS.get(code, ("LATIN",))

    def score(task: Task, trajectory: Trajectory) -> float | None:
        text = re.sub(r"```.*?(?:```|\Z)", " ", trajectory.text, flags=re.DOTALL)
        letters = [character for character in text if character.isalpha()]
        if not letters:
            return None
        share = sum(unicodedata.name(character, "").startswith(scripts) for character in letters) / len(letters)
        if code == "ja" and not any(unicodedata.name(c, "").startswith(("HIRAGANA", "KATAKANA")) for c in letters):
            return 0.0  # Chinese
        return share * rate_language(code, text) if code in WORDS else share

    return score


def rate_language(code: str, text: str) -> float:
    words = re.findall(r"\w+", text.lower())
    counts = {language: sum(word in common for word in words) for language, common in WORDS.items()}
    return float(len(words) < LATIN_ENOUGH or counts[code] == max(counts.values()))
