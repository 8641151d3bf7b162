"""Whether an answer says what it names: negations, alternatives, lists, and corrections around a mention."""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

from ilis_guard.lab.mentions import Mention, Token
from ilis_guard.lab.vocabulary import (
    AFFIRMATIONS,
    AND,
    AND_IN_A_RUN,
    BETWEEN,
    COMMAS,
    CONTRAST,
    DENIAL_BEFORE_IN_A_RUN,
    DENIAL_IN_A_RUN,
    DENIALS_BEHIND,
    DENIED_PREDICATES,
    EXCLUSIONS,
    FIRST,
    LAST_OF_PAIRS,
    LONGEST_ITEM,
    MAYBE,
    NEGATIONS,
    NEW_CLAUSE,
    NO,
    NO_ALTERNATIVES,
    OFFERS,
    OPINION,
    OR,
    OR_IN_A_RUN,
    PARENTHETICAL,
    PLACES,
    PREDICATES,
    QUALIFIERS,
    RETRACTION,
    SENTENCE_ENDS,
    SUBORDINATE,
    TAKEN_BACK,
    UNKNOWN,
    WRONG,
)

_RETRACTED: Final = re.compile(r"(?:no |oh |oops |hmm )*(?:wait|scratch that|correction|my mistake|hold on)\b")

IsGold = Callable[[tuple[str, ...]], bool]
"""Whether words are one of the gold answers."""


_DENIAL_OF_A_SENTENCE: Final = re.compile(r"아[니닙]|않|틀[린렸]")
_ENDED_IN_KOREAN: Final = re.compile(r"이?(?:며|고|지만|입니다|다)$")
_PAIR: Final = 2
_LEAST_LINES: Final = 3
_LONGEST_NAME: Final = 4


def is_asserted(mention: Mention, is_gold: IsGold) -> bool:
    """Return whether a text gives what it mentions as its answer."""
    return not (
        _is_in_a_name(mention)
        or is_denied(mention)
        or is_alternative(mention, is_gold)
        or _is_listed(mention, is_gold)
        or is_taken_back(mention)
    )


def _is_in_a_name(mention: Mention) -> bool:
    first = mention.tokens[mention.first]
    before = mention.tokens[mention.first - 1] if mention.first else None
    return before is not None and before.is_capital and first.is_capital and before.text in QUALIFIERS


def is_denied(mention: Mention) -> bool:
    """Return whether a text says that it isn't what it mentions."""
    before, behind = _words_before(mention), _words_behind(mention)
    _, end = _sentence(mention)
    if (
        before[:1]
        and before[0] in DENIED_PREDICATES
        and end < len(mention.tokens)
        and mention.tokens[end].text in "?？"
    ):
        before = before[1:]  # "Isn't it Paris?"
    if _is_negative(before):
        return True
    if before and DENIAL_BEFORE_IN_A_RUN.search(before[-1]):
        return True
    if _is_one_of_none(mention):
        return True
    if not _ENDED_IN_KOREAN.match("".join(behind[:1])) and any(map(_DENIAL_OF_A_SENTENCE.match, behind[1:4])):
        return True
    if behind and (
        DENIAL_IN_A_RUN.match(behind[0])
        or (len(behind) > 1 and DENIAL_IN_A_RUN.match(behind[1]) and len(behind[0]) == 1)
    ):
        return True
    return _is_negative_behind(behind)


def _is_one_of_none(mention: Mention) -> bool:
    """Whether it is denied with another: ``né Roma né Milano``."""
    start, end = _sentence(mention)
    words = [token.text for token in mention.tokens[start:end] if token.is_word]
    return words.count("ne") > 1 and mention.first > 0 and mention.tokens[mention.first - 1].text == "ne"


def is_alternative(mention: Mention, is_gold: IsGold) -> bool:
    """Return whether a text offers something else beside what it mentions."""
    items, separators, own = _items(mention)
    if _follows_in_another_sentence(mention) or _is_one_of_two_guesses(items, own):
        return True
    if "and" in separators and any(word in BETWEEN for item in items[: own + 1] for word in item):
        return True
    for step in (1, -1):
        place = own
        if step == -1 and items[own][:1] and items[own][0] in NEW_CLAUSE and items[own][0] not in PREDICATES:
            break  # "It isn't Lyon or Nice, it's Paris"
        while 0 <= place + step < len(items):
            separator = separators[place if step == 1 else place - 1]
            other = items[place + step]
            if (
                separator == "or"
                and not is_gold(_core(other))
                and not (step == 1 and other[:1] and other[0] in NO_ALTERNATIVES)
            ):
                return True
            if len(other) > LONGEST_ITEM or (other and other[0] in NEW_CLAUSE):
                break
            place += step
    return False


def _follows_in_another_sentence(mention: Mention) -> bool:
    """Whether the next sentence offers something else, as in ``Paris. Or London``."""
    _, end = _sentence(mention)
    rest = [token for token in mention.tokens[end:] if token.is_word]
    return len(rest) in (2, 3) and rest[0].text in OR


def _is_one_of_two_guesses(items: Sequence[tuple[str, ...]], own: int) -> bool:
    """``Maybe Paris, maybe London.``, ``soit Paris, soit Lyon``."""
    guesses = [
        place
        for place, item in enumerate(items)
        if len(item) > 1 and any(word in MAYBE or word == "soit" for word in item[:2])
    ]
    return own in guesses and len(guesses) > 1


def _items(mention: Mention) -> tuple[list[tuple[str, ...]], list[str], int]:
    """Divide the mention's sentence at commas and conjunctions; what is mentioned is never divided."""
    start, end = _sentence(mention)
    items: list[list[str]] = [[]]
    separators: list[str] = []
    own = 0
    is_name = mention.tokens[mention.first].is_capital
    for place in range(start, end):
        token = mention.tokens[place]
        inside = mention.first <= place <= mention.last
        if place == mention.first:
            own = len(items) - 1
        kind = "" if inside else _separator(token, is_beside=place in (mention.first - 1, mention.last + 1))
        if (
            token.text in ("o", "η")
            and kind
            and (not items[-1] or items[-1][-1] in CONTRAST | PREDICATES | AND | NEGATIONS)
        ):
            continue  # a Portuguese or Greek article
        if not kind:
            if token.is_word:
                # What begins with a small letter, beside a name, says something of it.
                says = (
                    is_name
                    and not items[-1]
                    and place > mention.last
                    and token.text[:1].isalpha()
                    and not token.is_capital
                )
                items[-1] += ["is"] * says + [token.text]
            continue
        items[-1] += _rest_of_a_run(token, kind) if place < mention.first else []
        if not items[-1] and separators:  # ", or"
            separators[-1] = kind if kind != "comma" else separators[-1]
        elif items[-1]:
            separators.append(kind)
            items.append([])
        items[-1] += _rest_of_a_run(token, kind) if place > mention.last else []
    return [tuple(item) for item in items], separators, own


def _rest_of_a_run(token: Token, kind: str) -> list[str]:
    """What a run of letters holds beside the conjunction that it begins or ends with."""
    if not token.is_word or token.text in OR | AND:
        return []
    rest = OR_IN_A_RUN.sub("", token.text) if kind == "or" else token.text[1:]
    return [rest] if rest else []


def _separator(token: Token, *, is_beside: bool) -> str:
    if not token.is_word:
        return "comma" if token.text in COMMAS else "or" if token.text in "/|" else "and" if token.text == "&" else ""
    if token.text in OR or (
        is_beside and (OR_IN_A_RUN.match(token.text) or re.search(r"(?:或者?|还是|または|か|หรือ)$", token.text))
    ):
        return "or"
    return "and" if token.text in AND or (is_beside and AND_IN_A_RUN.match(token.text)) else ""


def _core(item: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for word in item if word not in MAYBE)


def _is_listed(mention: Mention, is_gold: IsGold) -> bool:
    """Whether it is one of several that are named, where one is asked for."""
    items, separators, own = _items(mention)
    words = tuple(token.text for token in mention.tokens[mention.first : mention.last + 1] if token.is_word)
    is_item_end = items[own][-len(words) :] == words
    is_whole_item = _core(items[own]) == words
    if own < len(separators) and is_item_end and separators[own] == "and":
        other = items[own + 1]
        if other and len(other) < LONGEST_ITEM and other[0] not in NEW_CLAUSE and not is_gold(other):
            return True
    if own and is_whole_item and separators[own - 1] == "and" and not is_gold(items[own - 1]):
        return True
    if is_item_end or is_whole_item:
        chain = _chain(items, separators, own)
        ideographic = any(token.text == "、" for token in mention.tokens)
        if len(chain) >= (2 if ideographic else 4) and not all(map(is_gold, chain)):
            return True
        if "and" in separators and len(chain) >= 3 and not all(map(is_gold, chain)):
            return True
        before = {word for item in items[: own + 1] for word in item}
        if len(chain) >= _PAIR and (before & OFFERS or {"one", "of"} <= before) and not all(map(is_gold, chain)):
            return True
    return _is_offered(mention) or _is_bullet(mention) or _is_guess(mention)


def _is_offered(mention: Mention) -> bool:
    """Whether it stands in lines, or between semicolons, each of which has but a name; or among options."""
    start, end = _sentence(mention)
    for mark in ("\n", ";", "；"):
        parts = _parts(mention.tokens, mark)
        if len(parts) >= _LEAST_LINES and all(0 < len(part) < _LONGEST_NAME for part in parts):
            return True
    opening = [token.text for token in mention.tokens[: mention.first] if token.is_word]
    follows = mention.first and mention.tokens[mention.first - 1].text in ":：" and start == mention.first
    is_list = any(not token.is_word and token.text in COMMAS for token in mention.tokens[start:end])
    return bool(follows and is_list and OFFERS & set(opening[-3:]))


def _parts(tokens: Sequence[Token], mark: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for token in tokens:
        if token.text == mark:
            parts.append([])
        elif token.is_word:
            parts[-1].append(token.text)
    return [part for part in parts if part]


def _chain(items: Sequence[tuple[str, ...]], separators: Sequence[str], own: int) -> list[tuple[str, ...]]:
    """The short items on both sides, without anything else between them."""
    low = high = own
    while high + 1 < len(items) and separators[high] in ("comma", "and") and _is_short(items[high + 1]):
        high += 1
    while low and separators[low - 1] in ("comma", "and") and (low == 1 or _is_short(items[low - 1])):
        low -= 1
        if items[low][:1] and items[low][0] in CONTRAST | NEGATIONS:
            return list(items[low + 1 : high + 1])
    return [item for item in items[low : high + 1] if item]


def _is_short(item: tuple[str, ...]) -> bool:
    return 0 < len(item) < LONGEST_ITEM and item[0] not in NEW_CLAUSE | CONTRAST | NEGATIONS


def _is_bullet(mention: Mention) -> bool:
    lines: list[list[int]] = [[]]
    for place, token in enumerate(mention.tokens):
        if token.text == "\n":
            lines.append([])
        else:
            lines[-1].append(place)
    bullets = [
        line
        for line in lines
        if line
        and (
            mention.tokens[line[0]].text in "-*•·"
            or (len(line) > 1 and mention.tokens[line[0]].text.isdigit() and mention.tokens[line[1]].text in ".)")
        )
    ]
    return len(bullets) > 1 and any(mention.first in line for line in bullets)


def _is_guess(mention: Mention) -> bool:
    """Whether several short questions guess."""
    start, end = _sentence(mention)
    asked = [token for token in mention.tokens if token.text in "?？"]
    is_asked = end < len(mention.tokens) and mention.tokens[end].text in "?？"
    return is_asked and len(asked) > 1 and end - start <= LONGEST_ITEM


def is_taken_back(mention: Mention) -> bool:
    """Return whether a text corrects what it mentions."""
    words = [token.text for token in mention.tokens if token.is_word]
    index = sum(token.is_word for token in mention.tokens[: mention.last + 1])
    behind = " ".join(words[index : index + 5])
    match = TAKEN_BACK.match(behind)
    if match and len(behind) > match.end():
        return True
    _, end = _sentence(mention)
    rest = [token.text for token in mention.tokens[end:] if token.is_word]
    if rest and mention.tokens[end].text in "?？" and (rest[0] in NO or UNKNOWN.match(" ".join(rest[:6]))):
        return True  # "Paris? No."
    pause = mention.last + 1 < len(mention.tokens) and not mention.tokens[mention.last + 1].is_word
    retraction = RETRACTION.match(behind) if pause else None
    if retraction and len(behind) > retraction.end():
        return True
    if rest and _RETRACTED.match(" ".join(rest[:6])):
        return True
    before = " ".join(words[:index])
    later = {token.text for token in mention.tokens[mention.last + 1 :] if token.is_word}
    return OPINION.search(before) is not None and bool(later & {"but", "however", "actually"})


def _sentence(mention: Mention) -> tuple[int, int]:
    tokens = mention.tokens
    start, end = mention.first, mention.last + 1
    while start and not _ends_sentence(tokens, start - 1):
        start -= 1
    while end < len(tokens) and not _ends_sentence(tokens, end):
        end += 1
    return start, end


def _ends_sentence(tokens: Sequence[Token], place: int) -> bool:
    return not tokens[place].is_word and tokens[place].text in SENTENCE_ENDS


def _words_before(mention: Mention) -> list[str]:
    """The words of the mention's clause before it."""
    start, _ = _sentence(mention)
    words: list[str] = []
    segment: list[str] = []
    for place in range(mention.first - 1, start - 1, -1):
        token = mention.tokens[place]
        if token.is_word:
            pairs = (mention.tokens[place - 1].text, token.text), (token.text, mention.tokens[place + 1].text)
            is_end = token.text in CONTRAST and not any(pair in EXCLUSIONS for pair in pairs)
            if is_end or (token.text == "а" and place and not mention.tokens[place - 1].is_word):
                break
            segment.append(token.text)
        elif token.text in COMMAS:
            if words or segment:
                if segment and segment[-1] in SUBORDINATE:  # "I don't know, whether it is Paris"
                    words, segment = words + segment, []
                    continue
                if segment and segment[-1] in PARENTHETICAL and not words and not _is_negative(segment[::-1]):
                    segment = []  # "not, as many believe, Paris"
                    continue
                break
            if not _has_parenthesis(mention, place, start):
                break
    return (words + segment)[::-1]


def _has_parenthesis(mention: Mention, place: int, start: int) -> bool:
    """Whether a comma closes an insertion such as ", as many believe,"."""
    for before in range(place - 1, start - 1, -1):
        token = mention.tokens[before]
        if not token.is_word and token.text in COMMAS:
            return mention.tokens[before + 1].text in PARENTHETICAL
    return False


def _words_behind(mention: Mention) -> list[str]:
    words: list[str] = []
    for token in mention.tokens[mention.last + 1 :]:
        if not token.is_word:
            if token.text in COMMAS or token.text in SENTENCE_ENDS:
                break
            continue
        if token.text in CONTRAST:
            break
        words.append(token.text)
    return words


def _is_negative(words: Sequence[str]) -> bool:
    left = list(words)
    for phrase in AFFIRMATIONS:
        for start in range(len(left) - len(phrase) + 1):
            if tuple(left[start : start + len(phrase)]) == phrase:
                left[start : start + len(phrase)] = []
                break
    if "until" in left or left[-1:] == ["before"]:
        return False  # "It wasn't until 1969"
    exclusions = sum(pair in EXCLUSIONS for pair in pairwise(left))
    negations = [word for word in left if word in NEGATIONS]
    if any(word in LAST_OF_PAIRS for word in negations):
        return True
    return (len(negations) + exclusions) % 2 == 1


def _is_negative_behind(words: Sequence[str]) -> bool:
    head = list(words[:3])
    if any(tuple(head[start : start + 2]) in AFFIRMATIONS for start in range(2)):
        return False
    if len(head) > 1 and (head[0] in PREDICATES | DENIED_PREDICATES or head[0] == "would") and WRONG & set(words[1:4]):
        return head[0] in PREDICATES and not NEGATIONS & set(words[1:4])
    for place, word in enumerate(head):
        is_place = words[place + 1 : place + 2] and words[place + 1] in PLACES
        if word in DENIED_PREDICATES:
            return place < 2 and not is_place
        if word in DENIALS_BEHIND:
            return place < 2 or len(words) == 3
        if word in NEGATIONS:
            # "Paris is not the capital", and in Spanish or Russian the negation comes first: "Madrid no es".
            return not is_place and (
                (place > 0 and head[place - 1] in PREDICATES) or (place == 0 and words[1:2] != [] and word in FIRST)
            )
    return bool(words) and words[-1] in DENIALS_BEHIND
