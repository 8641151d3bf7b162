"""Arguments of a chat template, such as ``enable_thinking``, and the check that it reads them."""

from collections.abc import Mapping

from ilis_guard.config.tiers import TemplateArgument, template_argument_problem
from ilis_guard.errors import ModelError


def check_template_arguments(
    chat_template: str | Mapping[str, str] | None, arguments: Mapping[str, TemplateArgument]
) -> None:
    """Check that a chat template may get these arguments, and reads all of them.

    Args:
        chat_template: the tokenizer's; of several by name, the default one is used. None for a base model.
        arguments: by name.

    Raises:
        ModelError: it may not, or doesn't: a misspelt name would change nothing.
    """
    if chat_template is None:
        raise ModelError(
            f"this is a base model (its tokenizer has no chat template), so nothing reads chat_template_kwargs, got "
            f"{sorted(arguments)!r}; take them out"
        )
    for name, value in arguments.items():
        if not isinstance(value, TemplateArgument):
            raise ModelError(f"chat_template_kwargs: {name!r} must be a JSON scalar, got a {type(value).__name__}")
        if problem := template_argument_problem(name, value):
            raise ModelError(f"chat_template_kwargs: {name!r} {problem}")
    read = _variables(chat_template if isinstance(chat_template, str) else chat_template["default"])
    if unread := sorted(set(arguments) - read):
        raise ModelError(
            f"the model's chat template reads no variable {unread!r} (chat_template_kwargs), so that nothing would "
            f"change; it reads {sorted(name for name in read if not template_argument_problem(name, None))!r}"
        )


def _variables(chat_template: str) -> set[str]:
    """The names that a template reads and doesn't set itself."""
    from jinja2 import meta
    from transformers.utils.chat_template_utils import _compile_jinja_template  # it knows transformers' own tags

    environment = _compile_jinja_template(chat_template).environment
    return set(meta.find_undeclared_variables(environment.parse(chat_template)))
