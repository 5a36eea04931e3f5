"""The space of candidates: what techniques and engines declare as tunable, joined into one conditional space.

A point names its choices flatly: `engine`, the name of a technique (whether it is used), and `owner.parameter`. Which
choices a point has depends on those before them: a technique that cannot lead to what the engine opens is not asked for,
and neither are the parameters of one that is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Self

from pydantic import model_validator

from genopt import catalog
from genopt.plan import JsonValue, Plan, Record, Step
from genopt.search.rules import ORIGINAL, Rule, reaches, rule_of

Choice = str | int | float | bool | None
Point = dict[str, Choice]
ENGINE = "engine"


class Tunable(Record):
    """A parameter of a technique, or an option of an engine, that a search may change.

    Attributes:
        name: The parameter.
        choices: Its values; the first one is what it is without a reason for another.
        words: How a candidate's name spells each of them; an empty word leaves it out.
        when: (parameter, value): asked for only where one of these was chosen; always where there are none. Of the same owner, or
            `owner.parameter` of one that comes before. A parameter that was not asked for counts as None.
        requires: Asked for only where what is changed, or opened, carries these traits.
        family: The module family whose bits it sets, in the words of `genopt.search.precision`; empty where it sets no such thing.
        gpu: Whether choices other than the first one work on GPUs alone.
    """

    name: str
    choices: tuple[Choice, ...]
    words: tuple[str, ...]
    when: tuple[tuple[str, Choice], ...] = ()
    requires: frozenset[str] = frozenset()
    family: str = ""
    gpu: bool = False

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        if not self.choices or len(set(self.words)) != len(self.choices) or len(self.words) != len(self.choices):
            raise ValueError(f"{self.name} needs choices, and a word of its own for each")
        return self


class Dimension(Record):
    """One choice of a point.

    Attributes:
        name: Its flat name.
        choices: Values, the default first.
        words: How names spell them.
    """

    name: str
    choices: tuple[Choice, ...]
    words: tuple[str, ...]


class Owner(Record):
    """A technique or engine of a space.

    Attributes:
        name: Catalogue name.
        word: How names of candidates spell it.
        tunables: What may be changed about it.
        rule: What it asks of its source; None for engines.
        accepts: Traits that an engine opens.
    """

    name: str
    word: str
    tunables: tuple[Tunable, ...]
    rule: Rule | None = None
    accepts: frozenset[str] = frozenset()

    def dimension(self, tunable: Tunable) -> Dimension:
        """One of its parameters as a choice of a point."""
        return Dimension(name=f"{self.name}.{tunable.name}", choices=tunable.choices, words=tunable.words)


Choose = Callable[[Dimension], Choice]


class Space(Record):
    """All candidates that can be put together.

    Attributes:
        engines: What may run them; the first one is the default.
        techniques: What may be done to the model, in the order of their phases.
        original: Traits of the model that candidates begin with.
    """

    engines: tuple[Owner, ...]
    techniques: tuple[Owner, ...]
    original: frozenset[str] = ORIGINAL

    @model_validator(mode="after")
    def _owners_told_apart(self) -> Self:
        names = [owner.name for owner in (*self.engines, *self.techniques)]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"choices of {', '.join(sorted(twice))} could not be told apart; an engine or a technique needs another name")
        return self

    def walk(self, choose: Choose) -> Point:
        """Asks for one choice after the other and returns the point.

        Args:
            choose: Told each choice that the point has; returns one of its values.
        """
        point: Point = {}
        names = tuple(engine.name for engine in self.engines)
        point[ENGINE] = choose(Dimension(name=ENGINE, choices=names, words=tuple(engine.word for engine in self.engines)))
        engine = next(one for one in self.engines if one.name == point[ENGINE])
        traits, phase = self.original, 0
        for place, (owner, rule) in enumerate(self._ruled):
            with_it, without = self._options(place, traits, phase, engine.accepts)
            used = with_it
            if with_it and without:
                point[owner.name] = choose(self._usages[owner.name])
                used = bool(point[owner.name])
            if used:
                self._tune(owner, traits, point, choose)
                traits, phase = rule.after(traits), rule.phase
        self._tune(engine, traits, point, choose)
        return point

    def _options(self, place: int, traits: frozenset[str], phase: int, accepts: frozenset[str]) -> tuple[bool, bool]:
        """Whether the engine can be reached with a technique, and without it."""
        key = (place, traits, phase, accepts)
        if key not in self._known:
            rule, rest = self._ruled[place][1], [rule for _, rule in self._ruled[place + 1 :]]
            allowed = rule.phase > phase and rule.takes(traits)
            self._known[key] = (allowed and reaches(rest, rule.after(traits), rule.phase, accepts), reaches(rest, traits, phase, accepts))
        return self._known[key]

    @cached_property
    def _known(self) -> dict[Any, tuple[bool, bool]]:
        """Answers of `_options`: few, and asked for again with every point."""
        return {}

    @cached_property
    def _ruled(self) -> tuple[tuple[Owner, Rule], ...]:
        return tuple((owner, owner.rule) for owner in self.techniques if owner.rule is not None)

    @cached_property
    def _usages(self) -> dict[str, Dimension]:
        return {owner.name: Dimension(name=owner.name, choices=(False, True), words=("", owner.word)) for owner in self.techniques}

    @cached_property
    def _parameters(self) -> dict[str, tuple[tuple[Tunable, Dimension], ...]]:
        owners = (*self.techniques, *self.engines)
        return {owner.name: tuple((tunable, owner.dimension(tunable)) for tunable in owner.tunables) for owner in owners}

    def _tune(self, owner: Owner, traits: frozenset[str], point: Point, choose: Choose) -> None:
        for tunable, dimension in self._parameters[owner.name]:
            names = ((name if "." in name else f"{owner.name}.{name}", value) for name, value in tunable.when)
            chosen = not tunable.when or any(point.get(name) == value for name, value in names)
            if chosen and tunable.requires <= traits:
                point[dimension.name] = choose(dimension)

    def dimensions(self) -> tuple[Dimension, ...]:
        """All choices that points can have, in the order in which they are asked for."""
        engines = Dimension(name=ENGINE, choices=tuple(one.name for one in self.engines), words=tuple(one.word for one in self.engines))
        found = [engines]
        for owner in self.techniques:
            found += [self._usages[owner.name], *(dimension for _, dimension in self._parameters[owner.name])]
        return (*found, *(dimension for engine in self.engines for _, dimension in self._parameters[engine.name]))

    def complete(self, wanted: Mapping[str, Any]) -> Point:
        """The point with these choices, and defaults where they say nothing; what does not apply is left out."""
        return self.walk(lambda dimension: wanted[dimension.name] if wanted.get(dimension.name, self) in dimension.choices else dimension.choices[0])

    def neighbours(self, point: Point) -> Iterator[Point]:
        """Points that differ from one in a single choice, and in what depends on it."""
        for dimension in self.dimensions():
            if dimension.name in point:
                yield from (self.complete({**point, dimension.name: other}) for other in dimension.choices if other != point[dimension.name])

    def points(self) -> Iterator[Point]:
        """All points, the defaults of later choices first; there may be many."""
        places: list[int] = []
        while True:
            sizes: list[int] = []

            def choose(dimension: Dimension, sizes: list[int] = sizes) -> Choice:
                if len(sizes) == len(places):
                    places.append(0)
                sizes.append(len(dimension.choices))
                return dimension.choices[places[len(sizes) - 1]]

            yield self.walk(choose)
            while places and places[-1] + 1 == sizes[len(places) - 1]:
                places.pop()
            if not places:
                return
            places[-1] += 1

    def name(self, point: Mapping[str, Choice]) -> str:
        """What the candidate of a point is called; no two points share a name."""
        words: list[str] = []

        def choose(dimension: Dimension) -> Choice:
            value = point[dimension.name]
            words.append(dimension.words[dimension.choices.index(value)])
            return value

        self.walk(choose)
        return "-".join(filter(None, words))

    def plan(self, point: Mapping[str, Choice]) -> Plan:
        """The candidate of a point, with each of its choices spelled out.

        Args:
            point: A whole point, as `walk` and `complete` give it.
        """
        engine = next(one for one in self.engines if one.name == point[ENGINE])
        steps: list[Step] = []
        traits, phase = self.original, 0
        for place, (owner, rule) in enumerate(self._ruled):
            if point.get(owner.name, self._options(place, traits, phase, engine.accepts)[0]):
                steps.append(Step(technique=owner.name, params=self._settings(owner, point)))
                traits, phase = rule.after(traits), rule.phase
        return Plan(name=self.name(point), steps=tuple(steps), engine=engine.name, options=self._settings(engine, point))

    def _settings(self, owner: Owner, point: Mapping[str, Choice]) -> dict[str, JsonValue]:
        return {tunable.name: point[dimension.name] for tunable, dimension in self._parameters[owner.name] if dimension.name in point}

    def point_of(self, plan: Plan) -> Point | None:
        """The point of a plan; None where the space does not hold it."""
        given: dict[str, Any] = {ENGINE: plan.engine} | {f"{plan.engine}.{name}": value for name, value in plan.options.items()}
        for step in plan.steps:
            given |= {step.technique: True} | {f"{step.technique}.{name}": value for name, value in step.params.items()}
        found = self.complete(given)
        same = self.plan(found)
        return found if same.identity() == plan.identity() else None


def compose(engines: Mapping[str, str], techniques: Mapping[str, str], original: frozenset[str] = ORIGINAL) -> Space:
    """The space of some engines and techniques of the catalogue.

    Args:
        engines: Words for names by catalogue name, the default engine first.
        techniques: Likewise.
        original: Traits of the model that candidates begin with.
    """
    running = [(catalog.load("engines", name), word) for name, word in engines.items()]
    changing = [(catalog.load("techniques", name), word) for name, word in techniques.items()]
    changing.sort(key=lambda pair: pair[0].phase)
    return Space(
        engines=tuple(Owner(name=one.name, word=word, tunables=one.tunables, accepts=one.accepts) for one, word in running),
        techniques=tuple(Owner(name=one.name, word=word, tunables=one.tunables, rule=rule_of(one)) for one, word in changing),
        original=original,
    )
