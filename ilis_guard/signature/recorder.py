"""Recordings of answers: of one call of ``generate``, token by token in constant memory, or of an existing answer."""

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from ilis_guard.errors import SignatureError
from ilis_guard.signature.accumulators import (
    NextTokens,
    RunningMaps,
    RunningStatistics,
    chunk_length,
    next_token_numbers,
)
from ilis_guard.signature.layout import TapPoint
from ilis_guard.signature.tap import Tap
from ilis_guard.types import Position, Signature, Statistics

FindAnswer = Callable[[Sequence[int]], int | None]
"""Called with the tokens of an answer so far, before its end token: the place of the first that doesn't belong to the
model's thinking; None while all do."""

REPLAY_LENGTH: Final = 64
"""Answer tokens a pass of `replay`. Longer answers take several, with a key-value cache: memory doesn't grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Signatures and statistics of one row of a batch."""

    signatures: dict[Position, Signature]
    """`prompt` always; `last` and `mean` where at least one answer token passed through the model."""
    statistics: Statistics | None
    """None where there is no answer token."""
    tokens: int
    """Answer tokens, and those of the thinking before them."""
    ended: bool
    """The model ended the answer itself."""
    token_maps: Float32[np.ndarray, "tokens layers layers"] | None = None
    """Of each generated token that passed through the model; None unless the recorder keeps them."""


class AnswerTokens:
    """Tells answer tokens from other generated ones: they come before the first end token and aren't special.

    Args:
        end_tokens: they end an answer.
        special_tokens: they don't count.
        rows: of the batch.
        find_answers: one a row; without them, no row has thinking.
    """

    def __init__(
        self,
        end_tokens: Collection[int],
        special_tokens: Collection[int],
        rows: int = 1,
        find_answers: Sequence[FindAnswer] = (),
    ) -> None:
        self._end = torch.tensor(sorted(end_tokens), dtype=torch.int64)
        self._special = torch.tensor(sorted(special_tokens), dtype=torch.int64)
        self._rows = [_Answer(find) for find in find_answers]
        self.ended: Bool[Tensor, " batch"] = torch.zeros(rows, dtype=torch.bool)
        self.count: Int[Tensor, " batch"] = torch.zeros(rows, dtype=torch.int64)
        """Tokens before the end that aren't special, thinking too."""
        self.restarted: Bool[Tensor, " batch"] = torch.zeros(rows, dtype=torch.bool)
        """Rows whose tokens before the newest ones turned out to be thinking."""

    def add(self, tokens: Int[Tensor, "tokens batch"]) -> Bool[Tensor, "tokens batch"]:
        """Add the next tokens; return which of them are answer tokens."""
        tokens = tokens.cpu()
        ended = self.ended | (torch.isin(tokens, self._end).cumsum(dim=0) > 0)
        counted = ~ended & ~torch.isin(tokens, self._special)
        self.ended = ended[-1]
        self.count = self.count + counted.sum(dim=0)
        for row, answer in enumerate(self._rows):
            self.restarted[row] = answer.add(tokens[~ended[:, row], row].tolist())
            counted[: answer.new_thinking, row] = False
        return counted

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep only these rows."""
        self.ended, self.count, self.restarted = self.ended[rows], self.count[rows], self.restarted[rows]
        if self._rows:
            self._rows = [self._rows[row] for row in rows.tolist()]


class _Answer:
    """Where one row's answer starts."""

    def __init__(self, find: FindAnswer) -> None:
        self._find = find
        self._tokens: list[int] = []
        self._start: int | None = 0
        self.new_thinking = 0
        """How many of the newest tokens are thinking, from the first on."""

    def add(self, tokens: list[int]) -> bool:
        """Add tokens; return whether ones that counted so far turned out to be thinking."""
        before, previous = len(self._tokens), self._start
        self._tokens += tokens
        self._start = self._find(self._tokens)
        self.new_thinking = len(tokens) if self._start is None else max(0, self._start - before)
        return self._start != previous


class Recorder:
    """Records ``generate`` as a logits processor that changes nothing: transformers calls it after every forward pass.

    In that call the tap holds the activations of the token just fed in, ``input_ids`` ends with that token, and
    ``scores`` are the logits of the next, after other processors and before those of sampling. The last token of an
    answer cut off at its length limit never passes through the model: it counts in the statistics and has no map.

    Greedy decoding and sampling can be recorded, with any cache or none. Beam search, where a row's tokens come from
    passes of other rows, is refused.

    Args:
        tap: entered, on the model that generates.
        end_tokens: they end an answer.
        special_tokens: they don't count as answer tokens.
        temperature: of the maps' softmax.
        every_token: keep the map of each token; memory then grows by L x L numbers a token.
        find_answers: one a row, for models that think before they answer: what was thought has no part in `last`,
            `mean` and the statistics.
    """

    def __init__(
        self,
        tap: Tap,
        *,
        end_tokens: Collection[int],
        special_tokens: Collection[int],
        temperature: float,
        every_token: bool = False,
        find_answers: Sequence[FindAnswer] = (),
    ) -> None:
        self._tap = tap
        self._tokens = (end_tokens, special_tokens)
        self._find_answers = find_answers
        self._temperature = temperature
        self._every_token = every_token
        self._before: Int[Tensor, "batch sequence"] | None = None
        """The ids whose passes are summed up."""
        self._length = 0
        self._fed: list[Int[Tensor, "batch sequence"]] = []
        """The ids of later passes, whose activations are in the tap."""
        self._chunk = 1

    def __call__(self, input_ids: Int[Tensor, "batch sequence"], scores: Float[Tensor, "batch vocabulary"]) -> Tensor:
        """Record the forward pass that has just ended, and return the scores unchanged."""
        if self._before is None:
            self._begin(input_ids, scores)
        else:
            self._check_grew(input_ids)
            self._fed.append(input_ids)
            self._next.add(scores)
            if len(self._fed) == self._chunk:
                self._fold()
        self._length = input_ids.shape[1]
        return scores

    def so_far(self) -> list[Recording]:
        """Return a recording of each row, of all tokens that have passed through the model.

        Raises:
            SignatureError: no forward pass was seen, rows changed places, or an activation isn't finite.
        """
        if self._before is None:
            raise SignatureError("generation ended without a forward pass that the recorder saw")
        self._fold()
        return [
            Recording(
                signatures=self._maps.signatures(row),
                statistics=self._statistics.statistics(row),
                tokens=int(self._answer.count[row]),
                ended=bool(self._answer.ended[row]),
                token_maps=self._maps.of_tokens(row),
            )
            for row in range(len(self._before))
        ]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows of the batch: the model's next input has them and no others.

        Raises:
            SignatureError: as `so_far`.
        """
        assert self._before is not None, "the prompt comes first"
        self._fold()
        kept = torch.tensor(rows)
        self._before = self._before[kept.to(self._before.device)]
        for sums in (self._answer, self._maps, self._statistics, self._next):
            sums.keep(kept)

    def finish(self, sequences: Int[Tensor, "batch sequence"]) -> list[Recording]:
        """Add the last generated token, which is never fed back, and return the recordings.

        Args:
            sequences: what ``generate`` returned.

        Raises:
            SignatureError: as `so_far`, or the sequences aren't those that were recorded.
        """
        if self._before is not None:
            self._check_grew(sequences)
            self._fold()
            if not torch.equal(sequences[:, :-1], self._before):
                raise SignatureError(_not_continued(sequences, list(self._before.shape)))
            self._draw(sequences[:, -1:])
        return self.so_far()

    def _begin(self, input_ids: Int[Tensor, "batch sequence"], scores: Float[Tensor, "batch vocabulary"]) -> None:
        prompt = self._tap.take()[0]
        rows = len(input_ids)
        if len(prompt) != rows:
            raise SignatureError(f"{rows} prompts went in, and activations of {len(prompt)} rows came out")
        self._maps = RunningMaps(prompt.squeeze(1), self._temperature, every_token=self._every_token)
        self._statistics = RunningStatistics(rows)
        self._answer = AnswerTokens(*self._tokens, rows, self._find_answers)
        self._chunk = chunk_length(prompt.numel() + scores.numel())
        self._tap.make_room(self._chunk)
        self._next = NextTokens(scores, self._chunk)
        self._before = input_ids

    def _check_grew(self, sequences: Int[Tensor, "batch sequence"]) -> None:
        """Check that each row has one token more than before."""
        assert self._before is not None, "the prompt comes first"
        if sequences.shape != (len(self._before), self._length + 1):
            raise SignatureError(_not_continued(sequences, [len(self._before), self._length]))

    def _fold(self) -> None:
        """Sum up the passes since the last call."""
        if not self._fed:
            return
        assert self._before is not None, "the prompt comes first"
        newest, passes = self._fed[-1], len(self._fed)
        # Where beams change places, a row's tokens aren't those that it drew.
        continued = torch.cat([self._before, *(ids[:, -1:] for ids in self._fed)], dim=1)
        if not torch.equal(newest, continued):
            raise SignatureError(_not_continued(newest, list(continued.shape)))
        activations = self._tap.take(passes)[:, :, 0]
        if activations.shape[1] != len(newest):
            raise SignatureError(f"{len(newest)} rows went in, and activations of {activations.shape[1]} came out")
        self._maps.add(activations, self._draw(newest[:, -passes:]))
        self._before = newest
        self._fed.clear()

    def _draw(self, tokens: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "tokens batch"]:
        """Add drawn tokens to the statistics; return which of them count."""
        counted = self._answer.add(tokens.T)
        if self._answer.restarted.any():
            self._maps.restart(self._answer.restarted)
            self._statistics.restart(self._answer.restarted)
        self._statistics.add(self._next.numbers_of(tokens.T), counted)
        return counted


def replay(
    model: Any,
    points: Sequence[TapPoint],
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    special_tokens: Collection[int],
    temperature: float,
    cut: bool = False,
    every_token: bool = False,
    find_answer: FindAnswer | None = None,
) -> Recording:
    """Record an existing answer, as if it had been generated greedily. Each token passes through the model once.

    Args:
        model: a causal language model of transformers.
        points: its taps.
        prompt: token ids, at least one.
        answer: token ids without the end token, at least one.
        special_tokens: they don't count as answer tokens.
        temperature: of the maps' softmax.
        cut: the answer was cut off at its length limit, so that its last token has no map.
        every_token: keep the map of each token.
        find_answer: as a `Recorder`'s, of this answer.

    Raises:
        SignatureError: an activation is missing or not finite, there is no prompt or no answer, or the answer is long
            and the model returns no cache.
    """
    if not prompt or not answer:
        raise SignatureError(
            f"replay needs tokens of a prompt and of an answer, got {len(prompt)} and {len(answer)} tokens"
        )
    fed = list(answer[:-1] if cut else answer)
    statistics = RunningStatistics(1)
    tokens = AnswerTokens((), special_tokens, find_answers=() if find_answer is None else [find_answer])
    counted = tokens.add(torch.tensor(answer)[:, None])
    maps: RunningMaps | None = None
    cache = None
    with torch.inference_mode():
        for start, end in _passes(model, len(fed)):
            piece = fed[start:end]
            # In the first pass the prompt comes before, and its last token has a map and a distribution too.
            kept = len(piece) + (maps is None)
            ids = torch.tensor([[*(prompt if maps is None else ()), *piece]], device=model.device)
            with Tap(points, newest=kept) as tap:
                output = model(
                    input_ids=ids,
                    past_key_values=cache,
                    use_cache=True,
                    **_options(model, kept, len(prompt) + start, cache),
                )
                activations = tap.take()[0]
            is_last = end >= len(fed)
            cache = getattr(output, "past_key_values", None)
            if cache is None and not is_last:
                raise SignatureError(
                    f"an answer of {len(answer)} tokens can't be replayed: {type(model).__name__} returns no "
                    f"cache, so that only answers of up to {REPLAY_LENGTH} tokens can"
                )
            logits = output.logits[0, -kept:]
            if maps is None:
                maps = RunningMaps(activations[:, 0], temperature, every_token=every_token)
                before, activations, logits = logits[:1], activations[:, 1:], logits[1:]
            if activations.shape[1]:
                maps.add(activations.transpose(0, 1), counted[start : start + activations.shape[1]])
            # Each token was drawn from what came out at the one before; a cut answer's last one was drawn and not fed.
            drawn = answer[start:] if is_last else piece
            distributions = torch.cat([before, logits])
            before = distributions[-1:]
            numbers = next_token_numbers(distributions[: len(drawn)], torch.tensor(drawn))
            # As many rows as there are tokens: the distributions are a batch's, the sums those of one row.
            statistics.add(numbers.T[:, :, None], counted[start:][: len(drawn)])
    assert maps is not None, "there is at least one pass"
    return Recording(
        signatures=maps.signatures(0),
        statistics=statistics.statistics(0),
        tokens=int(tokens.count[0]),
        ended=not cut,
        token_maps=maps.of_tokens(0),
    )


def _not_continued(sequences: Int[Tensor, "batch sequence"], before: list[int]) -> str:
    return (
        f"the generated sequences ({list(sequences.shape)!r}) don't continue those of the passes before ({before!r}) "
        "by one token: beam search and assisted decoding can't be recorded, greedy decoding and sampling can"
    )


def _passes(model: Any, tokens: int) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of the answer tokens of each pass."""
    yield 0, min(REPLAY_LENGTH, tokens)
    # Some state spaces of transformers (Bamba, Jamba) reset their state at every pass of several tokens.
    step = 1 if getattr(model, "_is_stateful", False) else REPLAY_LENGTH
    for start in range(REPLAY_LENGTH, tokens, step):
        yield start, min(start + step, tokens)


def _options(model: Any, kept: int, start: int, cache: Any) -> dict[str, Any]:
    """Return the optional arguments that this model's ``forward`` accepts."""
    accepted = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    if "logits_to_keep" in accepted:  # logits of a whole prompt may take gigabytes
        options["logits_to_keep"] = kept
    if "position_ids" in accepted and cache is not None:  # Bamba doesn't read the position from its cache
        options["position_ids"] = torch.arange(start, start + kept, device=model.device)[None]
    return options
