from collections.abc import Generator

import pytest

from tests.adapters.standard import Standard


def _left_out(item: pytest.Item) -> dict[str, str] | None:
    """What the item's class leaves out of LangChain's tests; None where it isn't one of theirs."""
    found = getattr(item, "cls", None)
    return found.NOT_FOR_US if isinstance(found, type) and issubclass(found, Standard) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = (_left_out(item) or {}).get(getattr(item, "originalname", item.name))
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test of LangChain's that skips itself is no test passed, unless it is registered."""
    report = yield
    left_out = _left_out(item)
    if left_out is not None and report.skipped and not hasattr(report, "wasxfail"):
        name = getattr(item, "originalname", item.name)
        if name not in left_out:
            report.outcome = "failed"
            report.longrepr = f"{name} skipped itself: {report.longrepr}; register it in NOT_FOR_US, with the reason"
    return report
