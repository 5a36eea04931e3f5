"""Chat templates: how a model was taught to see a conversation, with what transformers gives them to use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NoReturn

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from genopt.errors import SpecError
from genopt.serving.exchange import ChatMessage

_OF_PROGRAMS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""A template is a program; what it raises is about the messages that it is given."""


class ChatTemplate:
    """A model's chat template; one that cannot be read refuses conversations and nothing else.

    Args:
        source: Jinja; None where the model has none.
        special: Its special tokens by their names in templates.
    """

    def __init__(self, source: str | None, special: Mapping[str, str]) -> None:
        self._special = dict(special)
        self._template, self._problem = None, "This model has no chat template"
        if source is not None:
            try:
                self._template = _environment().from_string(source)
            except TemplateError as error:
                self._problem = f"The model's chat template cannot be read ({error})"

    @property
    def is_there(self) -> bool:
        """Whether conversations can be rendered."""
        return self._template is not None

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The conversation, ending where the answer begins.

        Raises:
            SpecError: There is no template, or it refuses the conversation.
        """
        if self._template is None:
            raise SpecError(f"{self._problem}; use /v1/completions.", {"param": "messages"})
        plain = [message.model_dump() for message in messages]
        try:
            return self._template.render(messages=plain, add_generation_prompt=True, **self._special)
        except (TemplateError, *_OF_PROGRAMS) as error:
            raise SpecError(f"The model's chat template refuses these messages ({error}); change their order.", {"param": "messages"}) from None


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what an assistant says, for training; here it is what it encloses."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: object, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    """With the arguments that transformers' filter has."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
