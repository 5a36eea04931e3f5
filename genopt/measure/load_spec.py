"""What a load test is asked to do: the endpoint, the load, the limits and the prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from genopt.errors import SpecError
from genopt.measure.prompts import Prompt, read_prompts
from genopt.plan import Record
from genopt.spec import Duration, parse_slo

LimitName = Literal["ttft", "tpot", "e2el"]
REQUESTS = 64
CONCURRENCY = (1, 8, 32)


class LoadSpec(Record):
    """What `genopt bench` is asked to do.

    Attributes:
        url: Base URL of the endpoint, without `/v1` and without a slash at the end.
        model: Name to ask for; None takes the first that the endpoint lists.
        concurrency: Closed loop: numbers of workers, one level each. Empty where there is a rate.
        rate: Open loop: mean arrivals per second, one level each. Empty in the closed loop.
        requests: Requests per level; None only where there is a duration.
        duration: Seconds after which a level starts no more requests; those under way are waited for.
        stream: Ask for the answer token by token. Without, only whole answers can be timed: there is no TTFT, TPOT or ITL.
        prompts: File of prompts, see `genopt.measure.prompts`; None makes English ones.
        prompt_tokens: About how long a made prompt is, as the server counts it.
        max_tokens: Upper bound of new tokens per request.
        slo: Limits in seconds that a request has to meet to count as good.
        timeout: Seconds after which a request is given up.
        api_key_env: Environment variable that holds the key; None sends no key, whatever the environment has.
        seed: Seed of made prompts, arrivals and intervals.
    """

    url: str
    model: str | None = None
    concurrency: tuple[Annotated[int, Field(ge=1)], ...] = ()
    rate: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()
    requests: int | None = Field(default=None, ge=1)
    duration: Duration | None = Field(default=None, gt=0)
    stream: bool = True
    prompts: str | None = None
    prompt_tokens: int = Field(default=64, ge=1, le=100_000)
    max_tokens: int = Field(default=64, ge=1)
    slo: Annotated[dict[LimitName, Annotated[float, Field(gt=0)]], BeforeValidator(parse_slo)] = Field(default_factory=dict)
    timeout: Duration = Field(default=120.0, gt=0)
    api_key_env: str | None = None
    seed: int = Field(default=0, ge=0)

    @field_validator("url")
    @classmethod
    def _base(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"{value!r} is not a web address; write for example http://127.0.0.1:8000")
        if parts.username is not None:
            raise ValueError("an address with a password would be written into the result; name the key's variable with --api-key-env")
        return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1').rstrip('/')}"

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        found = {name: value for name, value in values.items() if value is not None}
        if "rate" not in found:
            most = found.get("requests")
            found.setdefault("concurrency", [number for number in CONCURRENCY if not isinstance(most, int) or number <= most])
        if "duration" not in found:
            found.setdefault("requests", max([REQUESTS, *_numbers(found.get("concurrency"))]))
        return found

    @model_validator(mode="after")
    def _agreeing(self) -> LoadSpec:
        if self.rate and self.concurrency:
            raise ValueError("--rate sends without waiting and --concurrency waits; give one of the two")
        if not self.rate and not self.concurrency:
            raise ValueError("a load needs at least one number, such as --concurrency 1,8,32")
        if not self.stream and {"ttft", "tpot"} & set(self.slo):
            raise ValueError("without streaming only whole answers are timed; limit e2el in --slo, or leave --no-stream out")
        if self.requests is not None and self.requests < max(self.concurrency, default=1):
            raise ValueError(f"{self.requests} requests cannot keep {max(self.concurrency)} workers busy; raise --requests")
        return self


def _numbers(values: object) -> list[int]:
    """Those that are numbers; the rest is refused by the field's own validation."""
    return [int(value) for value in values if str(value).strip().isdecimal()] if isinstance(values, list | tuple) else []


def build(values: Mapping[str, Any]) -> LoadSpec:
    """Validates values into a spec; those that are None get their defaults.

    Without a duration a level has 64 requests, or as many as it has workers where these are more. The default levels
    that would have more workers than requests are left out.

    Raises:
        SpecError: With the first value that cannot be used and the remedy.
    """
    try:
        return LoadSpec.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else ""
        name = place if place != "--url" else "URL"
        if name == "--slo" and first["type"] == "literal_error":
            raise SpecError(f"Bad value for --slo: {first['loc'][1]!r} is not a limit on one request; use ttft, tpot and e2el.") from None
        reason = first["msg"].removeprefix("Value error, ")
        raise SpecError(f"Bad value for {name}: {reason}." if name else f"{reason}.") from None


def own_prompts(spec: LoadSpec) -> tuple[Prompt, ...]:
    """The prompts of the file that a load test was given; none where it makes them.

    Raises:
        DataError: The file of prompts cannot be used.
    """
    return () if spec.prompts is None else read_prompts(Path(spec.prompts).expanduser())
