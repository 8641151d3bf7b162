"""Generators of questions with their answers, one for each sentence pattern."""

from collections.abc import Iterable, Iterator
from itertools import product

from benchmarks.gazetteer import cities, countries, gazetteer, large_cities

Facts = Iterator[tuple[str, Iterable[str]]]
"""Questions, each with its right answers."""


def country_of_city(count: int, *, a_country: int) -> Facts:
    """Of the largest cities, at most so many a country."""
    for city in large_cities(count, a_country=a_country):
        yield f"In which country is the city of {city.name}?", countries()[city.country].names


def continent_of_city(count: int, *, a_country: int) -> Facts:
    """Of the largest cities, at most so many a country, where the country lies on one continent."""
    for city in large_cities(count, a_country=a_country):
        if continent := countries()[city.country].continent:
            yield f"On which continent is the city of {city.name}?", [continent]


def state_of_city(count: int) -> Facts:
    """Of the largest cities of the United States."""
    states = gazetteer().get_us_states()
    for city in [city for city in cities() if city.country == "US"][:count]:
        yield f"In which US state is the city of {city.name}?", [states[city.state]["name"]]


def first_letter(words: Iterable[str]) -> Facts:
    """Of all words in their order, but for those that begin with a letter that is a word too."""
    for word in sorted({word for word in words if word.isalpha()}):
        if word[0] not in "AI":
            yield f'What is the first letter of the word "{word}"?', [word[0]]


def addition() -> Facts:
    """A number of two digits plus a multiple of ten."""
    for first, second in product(range(11, 100), range(10, 100, 10)):
        if first % 10:
            yield f"What is {first} plus {second}?", [str(first + second)]


def small_addition() -> Facts:
    """Sums of numbers up to twenty that aren't among those of `addition`."""
    for first, second in product(range(2, 21), repeat=2):
        if second % 10:
            yield f"What is {first} plus {second}?", [str(first + second)]


def multiplication(below: int) -> Facts:
    """A number from 3 on times one up to twelve."""
    for first, second in product(range(3, below), range(3, 13)):
        yield f"What is {first} times {second}?", [str(first * second)]


def successor(below: int) -> Facts:
    """Of the numbers from 10 on."""
    for number in range(10, below):
        yield f"Which number comes right after {number}?", [str(number + 1)]
