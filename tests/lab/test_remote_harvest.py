"""Harvesting a model that can't be tapped: LangChain's ChatOpenAI against a provider over real HTTP."""

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tenacity
from langchain_openai import ChatOpenAI

from ilis_guard.cascade.caller import ModelCaller
from ilis_guard.errors import FitError, ModelError
from ilis_guard.lab.attempt_schema import COLUMNS, HarvestManifest
from ilis_guard.lab.attempts import read_attempts
from ilis_guard.lab.evaluation.evaluate import Source, evaluate
from ilis_guard.lab.harvest import ConcurrentRemoteModel, harvest
from ilis_guard.models.remote import RemoteModel, fingerprint_of
from tests.provider import Provider, confidence, is_right, provider, town

NUMBERS = range(12)
TOWNS = [town(number) for number in NUMBERS]


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with provider() as one:
        yield one


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "towns.parquet"


def asked_at(serving: Provider, max_concurrent: int | None = None, **changes: Any) -> ConcurrentRemoteModel:
    model = RemoteModel(ChatOpenAI(**serving.arguments(**changes)))
    caller = ModelCaller("remote", backoff=tenacity.wait_none())
    return ConcurrentRemoteModel(model, caller, max_concurrent=max_concurrent)


def harvested(serving: Provider, path: Path, *, batch_size: int = 4, **changes: Any) -> HarvestManifest:
    return harvest(asked_at(serving, **changes), TOWNS, path, name="town-clerk", batch_size=batch_size)


def test_each_row_holds_its_own_answer_and_the_statistics_of_its_logprobs(serving: Provider, path: Path) -> None:
    harvested(serving, path)
    table = pq.read_table(path).to_pylist()
    assert [row["id"] for row in table] == [asked.id for asked in TOWNS]
    for number, row in zip(NUMBERS, table, strict=True):
        share = confidence(number)
        assert row["text"] == f"{'T' if is_right(number) else 'X'}{number}"
        assert row["wrong"] != is_right(number)
        assert (row["dataset"], row["tokens"], row["prompt_tokens"]) == (f"towns-{number % 2}", 2, 12)
        assert row["logprob_sum"] == pytest.approx(math.log(share) + math.log(0.99))
        assert row["logprob_mean"] == pytest.approx(row["logprob_sum"] / 2)
        assert row["margin_min"] == pytest.approx(share - (1 - share) / 2 if share > 1 / 3 else (1 - share) / 2 - share)
        assert row["entropy_mean"] is None
    assert len({row["margin_min"] for row in table}) == len(table)


def test_remote_answers_have_their_statistics_and_no_maps(serving: Provider, path: Path) -> None:
    harvested(serving, path)
    rows = read_attempts(path).answers()
    assert (rows.known, rows.signatures) == (("logprob_sum", "logprob_mean", "margin_min"), {})
    assert rows.statistics.shape == (len(TOWNS), 3)
    assert rows.wrong.tolist() == [not is_right(number) for number in NUMBERS]
    assert np.isfinite(rows.statistics).all()
    first, *_ = dict(read_attempts(path).generations()).values()
    assert first.statistics is not None
    assert first.statistics.logprob_sum == rows.statistics[0, 0]
    assert math.isnan(first.statistics.entropy_mean)
    assert first.signatures == {}


def test_the_manifest_names_model_and_arguments(serving: Provider, path: Path) -> None:
    manifest = harvested(serving, path)
    assert read_attempts(path).harvest == manifest
    assert manifest.fingerprint == fingerprint_of(ChatOpenAI(**serving.arguments(timeout=3)))
    assert (manifest.model, manifest.prompt, manifest.max_new_tokens) == ("town-clerk", "{question}", None)
    assert "sk-test" not in manifest.model_dump_json()


def test_without_the_two_likeliest_there_is_no_margin(serving: Provider, path: Path) -> None:
    harvested(serving, path, top_logprobs=None)
    assert read_attempts(path).answers().known == ("logprob_sum", "logprob_mean")


def test_without_logprobs_the_first_batch_is_the_last_and_nothing_is_kept(serving: Provider, path: Path) -> None:
    with pytest.raises(FitError, match=r"no logprobs.*set `logprobs: true` among the tier's `remote\.arguments`"):
        harvested(serving, path, logprobs=None, top_logprobs=None)
    assert len(serving.asked) == 4
    assert list(path.parent.iterdir()) == []


def test_rows_without_statistics_among_others_are_unanswered(serving: Provider, path: Path) -> None:
    model = asked_at(serving)
    mute = asked_at(serving, logprobs=None, top_logprobs=None)

    class Sometimes:
        fingerprint, prompt, max_new_tokens = model.fingerprint, model.prompt, model.max_new_tokens

        def generate_batch(self, conversations: Any) -> Any:
            return [*mute.generate_batch(conversations[:1]), *model.generate_batch(conversations[1:])]

    harvest(Sometimes(), TOWNS, path, name="town-clerk", batch_size=6)
    rows = read_attempts(path).answers()
    assert (rows.unanswered, len(rows.ids)) == (2, 10)
    assert [answer.statistics is None for _, answer in read_attempts(path).generations()].count(True) == 2


def test_a_batch_is_asked_at_once_as_far_as_the_tier_allows(serving: Provider, path: Path) -> None:
    together = threading.Barrier(3)

    def wait_for_two_others(_prompt: str) -> int:
        together.wait(timeout=30)  # three must be under way for any to go on
        return 200

    serving.before = wait_for_two_others
    harvested(serving, path, batch_size=6, max_concurrent=3)
    assert serving.most_at_once == 3
    assert len(serving.asked) == len(TOWNS)


def test_transient_failures_are_retried(serving: Provider, path: Path) -> None:
    serving.before = lambda prompt: 503 if serving.times[prompt] < 3 and "number 7" in prompt else 200
    harvested(serving, path)
    assert sorted(serving.times.values()) == [1] * 11 + [3]
    assert len(read_attempts(path).answers().ids) == len(TOWNS)


def test_a_failed_answer_fails_the_run_and_is_retried_by_the_next(serving: Provider, path: Path) -> None:
    refused = TOWNS[5].prompt()
    serving.before = lambda prompt: 400 if prompt == refused else 200
    with pytest.raises(ModelError, match=r"1 answer couldn't be had, such as that to 'q5' \(ModelError: .*400.*kept"):
        harvested(serving, path)
    assert not path.exists()
    assert set(serving.times) == {asked.prompt() for asked in TOWNS}

    serving.asked.clear()
    serving.before = lambda _prompt: 200
    harvested(serving, path)
    assert serving.times == {refused: 1}
    assert read_attempts(path).answers().ids.tolist() == [asked.id for asked in TOWNS]
    assert list(path.parent.iterdir()) == [path]


def test_where_nothing_comes_the_rest_is_not_asked_for(serving: Provider, path: Path) -> None:
    serving.before = lambda _prompt: 401
    many = [town(number) for number in range(40)]
    with pytest.raises(ModelError, match=r"20 answers couldn't be had.*status 401"):
        harvest(asked_at(serving), many, path, name="town-clerk", batch_size=4)
    assert len(serving.asked) == 20
    assert list(path.parent.iterdir()) == []


def test_other_arguments_do_not_continue_an_unfinished_run(serving: Provider, path: Path) -> None:
    serving.before = lambda prompt: 400 if prompt == TOWNS[0].prompt() else 200
    with pytest.raises(ModelError):
        harvested(serving, path)
    before = len(serving.asked)
    with pytest.raises(FitError, match="unfinished table that was made differently"):
        harvested(serving, path, temperature=0.7)
    assert len(serving.asked) == before


def test_no_question_stands_in_a_message(serving: Provider, path: Path) -> None:
    serving.before = lambda _prompt: 400
    with pytest.raises(ModelError) as caught:
        harvested(serving, path)
    assert "code of the town" not in str(caught.value)


def test_maps_of_a_remote_model_are_refused(serving: Provider, path: Path) -> None:
    manifest = harvested(serving, path)
    with pytest.raises(FitError, match=r"'town-clerk' hold no maps.*can't be tapped"):
        manifest.tapped()
    with pytest.raises(FitError, match="hold no maps"):
        evaluate(Source(harvests=[path]))


def test_the_columns_are_those_of_any_harvest(serving: Provider, path: Path) -> None:
    harvested(serving, path)
    schema = pq.read_schema(path)
    assert schema.names == [*COLUMNS.names, "text", "token_ids", "system", "history"]
