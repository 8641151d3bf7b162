"""Rolling profiles: the last answers of a tier's own traffic, on disk, shared, and read as anybody's file."""

import math
import shutil
import sqlite3
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from ilis_guard.errors import ProfileError
from ilis_guard.scoring.profile import LEAST_ANSWERS
from ilis_guard.scoring.rolling_profile import LEAST, RollingProfile
from tests.processes import die, ended, forked

SOURCE = "bundle 0123456789abcdef"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "chat.db"


def filled(path: Path, values: list[float], *, answers: int = LEAST) -> RollingProfile:
    profile = RollingProfile(path, answers=answers)
    for value in values:
        assert profile.add(value, SOURCE).problem == ""
    return profile


def stored(path: Path) -> list[float]:
    with closing(sqlite3.connect(path)) as connection:
        return [value for (value,) in connection.execute("SELECT value FROM answers ORDER BY id")]


def test_a_rank_is_the_share_of_the_last_answers_that_are_as_sure(path: Path) -> None:
    profile = RollingProfile(path, answers=LEAST)
    for number in range(LEAST_ANSWERS):
        assert math.isnan(profile.rank(0.5, SOURCE)), "too few answers are known"
        profile.add(number / 10, SOURCE)
    assert [profile.rank(value, SOURCE) for value in (-1.0, 0.0, 0.95, 5.0)] == [0, 1 / 20, 0.5, 1]


def test_only_the_last_answers_are_kept(path: Path) -> None:
    profile = filled(path, [float(number) for number in range(LEAST + 30)])
    assert profile.answers == LEAST
    assert (profile.rank(29.5, SOURCE), profile.rank(30.0, SOURCE)) == (0, 1 / LEAST)
    assert stored(path) == [float(number) for number in range(30, LEAST + 30)]


def test_a_value_that_all_answers_have_makes_none_of_them_sure(path: Path) -> None:
    profile = filled(path, [0.0] * LEAST)
    assert profile.rank(0.0, SOURCE) == 1


@settings(max_examples=30)
@given(st.lists(st.floats(0, 10), min_size=LEAST_ANSWERS, max_size=90), st.floats(-1, 11))
def test_ranks_are_those_of_the_last_values_whatever_they_are(values: list[float], value: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        profile = filled(Path(folder) / "chat.db", values)
        last = values[-LEAST:]
        assert profile.rank(value, SOURCE) == sum(each <= value for each in last) / len(last)
        profile.close()


def test_a_restart_goes_on_where_it_was_even_with_another_number_of_answers(path: Path) -> None:
    values = [float(number) for number in range(80)]
    first = filled(path, values, answers=100)
    first.close()
    again = RollingProfile(path, answers=100)
    assert (again.answers, again.rank(39.0, SOURCE)) == (80, 0.5)
    fewer = RollingProfile(path, answers=50)
    assert (fewer.answers, fewer.rank(54.0, SOURCE)) == (50, 0.5)


def test_what_was_added_survives_kill_9_at_any_moment(path: Path) -> None:
    filled(path, [0.5]).close()

    def add_and_die() -> None:
        profile = RollingProfile(path, answers=LEAST)
        for number in range(30):
            profile.add(number / 10, SOURCE)
        die()

    def die_in_a_transaction() -> None:
        profile = RollingProfile(path, answers=LEAST)
        with profile._transaction() as connection:
            connection.execute("INSERT INTO answers (value) VALUES (99.0)")
            die()

    assert ended(forked(add_and_die)) == -9
    assert ended(forked(die_in_a_transaction)) == -9
    assert RollingProfile(path, answers=LEAST).answers == 31
    assert stored(path) == [0.5, *(number / 10 for number in range(30))]


def test_a_log_that_is_left_of_a_deleted_profile_is_told(path: Path) -> None:
    profile = filled(path, [0.5])
    path.unlink()
    with pytest.raises(ProfileError, match=r"it is gone, and '.*chat\.db-wal' is left of it; .* those beside it"):
        RollingProfile(path, answers=LEAST)
    profile.close()


def test_processes_share_a_file(path: Path) -> None:
    def add(start: int) -> None:
        profile = RollingProfile(path, answers=500)
        for number in range(100):
            assert profile.add(float(start + number), SOURCE).problem == ""
        assert profile.answers >= 100

    children = [forked(lambda start=start: add(start)) for start in (0, 1000)]  # type: ignore[misc]
    mine = RollingProfile(path, answers=500)
    mine.add(5000.0, SOURCE)
    assert [ended(child) for child in children] == [0, 0]
    assert sorted(stored(path)) == [*map(float, range(100)), *map(float, range(1000, 1100)), 5000.0]
    mine.add(6000.0, SOURCE)
    assert (mine.answers, mine.rank(1050.0, SOURCE)) == (202, 151 / 202)


def test_threads_share_a_profile(path: Path) -> None:
    profile = RollingProfile(path, answers=LEAST)

    def add() -> None:
        for number in range(40):
            profile.add(float(number), SOURCE)
            profile.rank(1.0, SOURCE)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert profile.answers == len(stored(path)) == LEAST
    assert profile.rank(40.0, SOURCE) == 1


def test_answers_of_another_bundle_or_model_are_refused(path: Path) -> None:
    profile = filled(path, [float(number) for number in range(LEAST)])
    for call in (profile.check_fits, lambda other: profile.rank(1.0, other), lambda other: profile.add(1.0, other)):
        with pytest.raises(ProfileError, match=r"were scored by 'bundle 0123.*this is 'bundle fedc'.*delete this one"):
            call("bundle fedc")
    assert len(stored(path)) == LEAST
    with pytest.raises(ProfileError, match="name another file"):
        RollingProfile(path, answers=LEAST).check_fits("perplexity of a model without a fingerprint")


def test_of_two_models_that_begin_a_file_together_one_is_refused(path: Path) -> None:
    one, other = RollingProfile(path, answers=LEAST), RollingProfile(path, answers=LEAST)
    one.add(1.0, SOURCE)
    with pytest.raises(ProfileError, match="name another file"):
        other.add(2.0, "bundle fedc")
    with pytest.raises(ProfileError, match="name another file"):
        other.rank(2.0, "bundle fedc")
    assert stored(path) == [1.0]


@pytest.mark.parametrize("answers", [LEAST - 1, 0, -5, 100_001, True])
def test_a_profile_of_too_few_or_too_many_answers_is_refused(answers: int, path: Path) -> None:
    with pytest.raises(ProfileError, match=rf"keeps 50 to 100000 answers, got {answers}"):
        RollingProfile(path, answers=answers)
    assert not path.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_answer(value: float, path: Path) -> None:
    profile = filled(path, [1.0])
    with pytest.raises(ProfileError, match="takes finite values, got"):
        profile.add(value, SOURCE)
    assert stored(path) == [1.0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "chat.db"
    filled(path, [number / 7 for number in range(LEAST)]).close()
    return path.read_bytes()


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.5, 0.7, 0.99])
def test_a_torn_file_is_told_and_never_read_as_good(kept: float, whole: bytes, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ProfileError, match=r"chat\.db' can't be used: .*; name another file, or delete this one"):
        RollingProfile(path, answers=LEAST)


@pytest.mark.parametrize("page", range(3))
def test_a_file_with_a_hole_is_told(page: int, whole: bytes, path: Path) -> None:
    path.parent.mkdir()
    size = 4096
    path.write_bytes(whole[: page * size] + bytes(size) + whole[(page + 1) * size :])
    with pytest.raises(ProfileError, match="can't be used"):
        RollingProfile(path, answers=LEAST)


@settings(max_examples=50)
@given(st.binary(max_size=300))
def test_any_file_is_a_profile_or_an_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chat.db"
        path.write_bytes(content)
        with pytest.raises(ProfileError, match="can't be used"):
            RollingProfile(path, answers=LEAST)


HOSTILE = {
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON answers BEGIN DELETE FROM answers; END",
    "a view": "CREATE VIEW v AS SELECT 1",
    "another table": "CREATE TABLE more (id INTEGER)",
    "an index": "CREATE INDEX i ON answers (value)",
    "an infinite value": "INSERT INTO answers (value) VALUES (9e999)",
    "a text": "INSERT INTO answers (value) VALUES ('much')",
    "nobody's answers": "UPDATE profile SET source = ''",
    "two owners": "INSERT INTO profile VALUES ('other', 0, 0)",
    "no owner": "DELETE FROM profile",
    "a number of another kind": "UPDATE profile SET checked = 'soon'",
    "another release": "PRAGMA user_version = 2",
    "another program": "PRAGMA application_id = 7",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_database_that_isnt_ours_is_refused(name: str, whole: bytes, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(whole)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(HOSTILE[name])
    with pytest.raises(ProfileError, match="can't be used"):
        RollingProfile(path, answers=LEAST)


def test_what_is_no_plain_file_or_too_large_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(ProfileError, match="it is no plain file"):
        RollingProfile(path)
    shutil.rmtree(path)
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(2**30)
    with pytest.raises(ProfileError, match="has 1073741824 bytes"):
        RollingProfile(path)


def test_a_disk_that_fails_leaves_the_answer_to_this_process(path: Path) -> None:
    profile = filled(path, [float(number) for number in range(LEAST_ANSWERS)])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # for longer than a write waits
        added = profile.add(0.5, SOURCE)
        assert added.problem == "OperationalError: database is locked"
        assert (profile.answers, profile.rank(0.5, SOURCE)) == (21, 2 / 21)
        other.execute("ROLLBACK")
    assert profile.add(0.6, SOURCE).problem == ""
    assert len(stored(path)) == 21


def test_a_drift_is_told_once_and_the_next_one_again(path: Path) -> None:
    random = np.random.default_rng(0)
    profile = RollingProfile(path, answers=200)

    def drifts(values: np.ndarray) -> list[float]:
        added = [profile.add(float(value), SOURCE) for value in values]
        return [one.drift.median - one.drift.earlier_median for one in added if one.drift is not None]

    assert drifts(random.gamma(2, 0.3, 600)) == []
    (up,) = drifts(random.gamma(2, 0.3, 600) + 0.5)
    (down,) = drifts(random.gamma(2, 0.3, 600))
    assert 0.2 < up < 0.8
    assert -0.8 < down < -0.2


def test_a_drift_that_was_told_isnt_told_again_after_a_restart(path: Path) -> None:
    random = np.random.default_rng(1)
    profile = filled(path, random.normal(size=200).tolist(), answers=200)
    told = []
    for value in random.normal(2, size=100):
        told += [added.drift] if (added := profile.add(float(value), SOURCE)).drift else []
        profile.close()
        profile = RollingProfile(path, answers=200)
    assert len(told) == 1
    assert (told[0].answers, told[0].earlier) == (50, 150)
    assert told[0].p_value < 0.001


def test_traffic_that_stays_alike_is_rarely_called_drifting(path: Path) -> None:
    random = np.random.default_rng(2)
    profile = RollingProfile(path, answers=100)
    values = random.gamma(2, 0.3, 5000)
    assert sum(profile.add(float(value), SOURCE).drift is not None for value in values) <= 2  # of 200 looks
