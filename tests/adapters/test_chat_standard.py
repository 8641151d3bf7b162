"""LangChain's own tests of chat models, on a guard with a real model and the bundle that was fitted to it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from ilis_guard import Guard, Policy, Tier
from ilis_guard.models.local import LocalModel
from ilis_guard.scoring import LightGBMScorer, read_bundle
from ilis_guard_langchain import ChatIlisGuard
from tests.adapters.chat_models import chat
from tests.adapters.standard import NO_RECORDINGS, OTHER_MODEL, STRUCTURE, TEXT_ONLY, TOOLS, Standard

POLICY = """
version: 1
name: says-something
rules:
  - {id: sure, when: uncertainty < 0.5, do: answer}
  - {id: decline, do: abstain, say: I would rather not say.}
"""
LENGTH = (
    "how long an answer may be is the operator's guard.yaml, and what a bundle was fitted to: `max_tokens` is refused; "
    "what else this test looks at stands in test_tracing_knows_the_policy_and_the_tiers"
)


class _OfAGuard(Standard):
    guard: ClassVar[Guard]

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatIlisGuard

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"guard": self.guard}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        """Of LangChain's standard ones, those that aren't the operator's: guard.yaml has lengths, times and retries."""
        return {"stop": []}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False


class TestChatIlisGuard(_OfAGuard, ChatModelUnitTests):
    NOT_FOR_US: ClassVar[dict[str, str]] = {
        "test_bind_tool_pydantic": TOOLS,
        "test_with_structured_output": STRUCTURE,
        "test_init_from_env": "a guard's secrets come from the environment as guard.yaml says, not by the class",
        "test_serdes": "a guard is models, a queue and secrets: what can be written down is its guard.yaml",
    }

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _with_a_guard(cls) -> None:
        cls.guard = chat(0.1).guard

    @pytest.mark.xfail(reason=LENGTH, strict=True)
    def test_standard_params(self, model: BaseChatModel) -> None:
        super().test_standard_params(model)


@pytest.mark.filterwarnings("ignore:.* is in beta:langchain_core._api.beta_decorator.LangChainBetaWarning")
class TestChatIlisGuardOnARealModel(_OfAGuard, ChatModelIntegrationTests):
    NOT_FOR_US: ClassVar[dict[str, str]] = {
        **dict.fromkeys(
            (
                "test_tool_calling",
                "test_tool_calling_async",
                "test_bind_runnables_as_tools",
                "test_tool_message_histories_string_content",
                "test_tool_message_histories_list_content",
                "test_tool_choice",
                "test_tool_calling_with_no_arguments",
                "test_tool_message_error_status",
                "test_structured_few_shot_examples",
                "test_agent_loop",
                "test_unicode_tool_call_integration",
            ),
            TOOLS,
        ),
        **dict.fromkeys(
            (
                "test_structured_output",
                "test_structured_output_async",
                "test_structured_output_pydantic_2_v1",
                "test_structured_output_optional_param",
                "test_json_mode",
            ),
            STRUCTURE,
        ),
        **dict.fromkeys(
            (
                "test_pdf_inputs",
                "test_audio_inputs",
                "test_image_inputs",
                "test_image_tool_message",
                "test_pdf_tool_message",
                "test_anthropic_inputs",
            ),
            TEXT_ONLY,
        ),
        **dict.fromkeys(
            (
                "test_invoke_with_model_override",
                "test_ainvoke_with_model_override",
                "test_stream_with_model_override",
                "test_astream_with_model_override",
            ),
            OTHER_MODEL,
        ),
        "test_stream_time": NO_RECORDINGS,
    }

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _with_a_guard(cls, smollm2_full: LocalModel) -> None:
        scorer = LightGBMScorer(read_bundle("packaged:smollm2-135m-instruct-full"))
        scorer.check_fits(smollm2_full.fingerprint)
        tier = Tier(name="smollm2", model=smollm2_full, scorer=scorer)
        cls.guard = Guard(tiers=[tier], policy=Policy.parse(POLICY))


@pytest.mark.parametrize("ours", [TestChatIlisGuard, TestChatIlisGuardOnARealModel])
def test_tests_left_out_exist(ours: type[Standard]) -> None:
    assert set(ours.NOT_FOR_US) <= {name for name in dir(ours) if name.startswith("test_")}


UNREGISTERED = """
import pytest

from tests.adapters.standard import Standard


class TestTheirs(Standard):
    NOT_FOR_US = {"test_registered": "it isn't for us"}

    def test_registered(self):
        raise AssertionError("it must not run")

    def test_skips_itself(self):
        pytest.skip("something is missing")

    def test_passes(self):
        pass
"""


@pytest.mark.usefixtures("process")
def test_a_test_that_skips_itself_without_being_registered_fails(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(UNREGISTERED)
    options = ["-p", "tests.adapters.conftest", "-c", os.devnull, "--rootdir", str(tmp_path), "-ra"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_theirs.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 1 passed, 1 skipped" in run.stdout
    assert "it isn't for us" in run.stdout
    assert "test_skips_itself skipped itself" in run.stdout
