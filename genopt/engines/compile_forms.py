"""Forms in which a model compiles sooner or runs faster, given up one after the other where compiling fails in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch._dynamo.exc

from genopt.engines.attention import NO_KERNEL
from genopt.engines.plain_weights import PlainWeights
from genopt.engines.regions import Regions

T = TypeVar("T")


class Forms:
    """What a model is changed into while it is compiled; what cannot be compiled so is compiled without the first of them, then without the next.

    Args:
        forms: In the order in which they are given up; those that change nothing are left out.
    """

    def __init__(self, *forms: Regions | PlainWeights) -> None:
        self._forms = [form for form in forms if len(form)]
        self._compiled = False

    def use(self) -> None:
        """From now on the model has them."""
        for form in self._forms:
            form.use()

    def end(self) -> None:
        """From now on it is what it was; nothing where it is."""
        for form in self._forms:
            form.end()

    @property
    def has_regions(self) -> bool:
        """Whether blocks are still regions."""
        return any(isinstance(form, Regions) for form in self._forms)

    def run(self, call: Callable[[], T], again: Callable[[], None] = lambda: None) -> T:
        """Calls what compiles when it first runs.

        Args:
            call: Calls it.
            again: Told that it is about to be called without one form more.

        Raises:
            Exception: Whatever the call raises without any of them, or once it has run, as that is not the compiler's.
        """
        while True:
            try:
                found = call()
            except torch.OutOfMemoryError:
                raise
            except (torch._dynamo.exc.TorchDynamoException, AssertionError, RuntimeError) as error:  # Dynamo lets assertions of its own through
                if self._compiled or not self._forms or NO_KERNEL in str(error):
                    raise
                self._forms.pop(0).end()
                again()
            else:
                self._compiled = True
                return found
