"""The fingerprint of a chat model: who is asked, and with what."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from langchain_core.language_models import BaseChatModel
from pydantic import BaseModel, SecretBytes, SecretStr

from ilis_guard.types import RemoteFingerprint

NAMES: Final = ("model_name", "model")
"""Where LangChain's integrations keep the model's name."""
ASIDE: Final = frozenset(
    {"timeout", "retries", "retry", "client", "socket", "proxy", "headers", "stream", "streaming", "organization"}
    | {"key", "token", "secret", "password", "credentials", "auth"}
)
"""An argument with one of these words in its name says how a model is reached and not what it says, or is a secret."""


def fingerprint_of(chat: BaseChatModel, bound: Mapping[str, Any] | None = None) -> RemoteFingerprint:
    """What makes the output statistics of a chat model's answers comparable.

    It is told by the object itself, so that one from guard.yaml and one that a program made are alike where they ask
    alike, whichever part of it came from the environment.

    Args:
        chat: an integration's.
        bound: what each call passes on to it besides.
    """
    kind = type(chat)
    fields = {
        name: getattr(chat, name)
        for name, field in kind.model_fields.items()
        if name not in BaseChatModel.model_fields and name not in chat.lc_secrets and not field.exclude
    }
    model = next((value for name in NAMES if isinstance(value := fields.pop(name, None), str)), "")
    given = {**fields, **(bound or {})}
    return RemoteFingerprint(
        chat_model=f"{kind.__module__}:{kind.__qualname__}",
        model=model,
        arguments={name: _told(given[name]) for name in sorted(given) if _counts(name, given[name])},
    )


def _counts(name: str, value: object) -> bool:
    if isinstance(value, SecretStr | SecretBytes) or not ASIDE.isdisjoint(name.lower().split("_")):
        return False
    # An argument that a later release of the integration knows changes nothing for whoever doesn't use it.
    return value is not None and not (isinstance(value, list | tuple | Mapping) and not value)


def _told(value: object) -> bool | int | float | str:
    if isinstance(value, bool | int | float):
        return value
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_data).encode()).hexdigest()[:16]


def _data(value: object) -> object:
    """What is no JSON as such; what is no data either, such as a function, is told apart by its type alone."""
    if isinstance(value, BaseModel):
        return dict(value)
    return sorted(map(repr, value)) if isinstance(value, set | frozenset) else type(value).__qualname__
