"""The bodies of requests, as OpenAI's API has them. A field that is not here is refused by its name, as is a value that
could only be ignored.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from megatron_lite.serving.refusals import Refusal

Count = Annotated[int, Field(ge=1, le=2**31)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]  # as a field's name
LIKELY = 20  # most likely tokens at most, as OpenAI has it
STOPS, STOP_CHARACTERS = 16, 256  # each new token is held against all of them


class Part(BaseModel):
    """Of a body: nothing but what it names, and no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def _stops(value: Any) -> Any:
    """One text or several."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > STOPS:
        raise ValueError(f"must be a text, or a list of up to {STOPS}")
    if not all(isinstance(one, str) and 0 < len(one) <= STOP_CHARACTERS for one in found):
        raise ValueError(f"must hold texts of 1 to {STOP_CHARACTERS} characters")
    return tuple(found)


def _prompts(value: Any) -> Any:
    """A text, ids, or a list of either -> a tuple of texts and of tuples of ids."""
    several = value if isinstance(value, list) and value and not _is_id(value[0]) else [value]
    found = [tuple(one) if isinstance(one, list) else one for one in several]
    for one in found:
        if not isinstance(one, str) and not (isinstance(one, tuple) and one and all(map(_is_id, one))):
            raise ValueError("must be a text, a list of texts, a list of token ids, or a list of such lists")
    return tuple(found)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


class StreamOptions(Part):
    include_usage: bool | None = None


class ResponseFormat(Part):
    type: Literal["text"]


class Asking(Part):
    """What both endpoints take. null is the same as leaving a field out."""

    model: str
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Count | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_stops)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class CompletionBody(Asking):
    prompt: Annotated[tuple[str | tuple[int, ...], ...], BeforeValidator(_prompts)]
    logprobs: Annotated[int, Field(ge=0, le=LIKELY)] | None = None
    echo: bool | None = None
    # Of OpenAI's, and not here: only null is taken.
    best_of: None = None
    suffix: None = None
    user: None = None


class TextPart(Part):
    type: Literal["text"]
    text: str


class FunctionCall(Part):
    name: str
    arguments: str


class ToolCall(Part):
    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(Part):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None


class Function(Part):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Part):
    type: Literal["function"]
    function: Function


def _some(value: Any) -> Any:
    if not value:
        raise ValueError("must have a message")
    return value


class ChatBody(Asking):
    messages: Annotated[list[ChatMessage], AfterValidator(_some)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=LIKELY)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    response_format: ResponseFormat | None = None
    # Of OpenAI's, and not here: only null is taken.
    function_call: None = None
    functions: None = None
    metadata: None = None
    modalities: None = None
    parallel_tool_calls: None = None
    reasoning_effort: None = None
    service_tier: None = None
    store: None = None
    user: None = None


Body = TypeVar("Body", bound=Part)


def parsed(kind: type[Body], raw: bytes) -> Body:
    """Raises Refusal, which names the first field that is wrong."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> Refusal:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = first["loc"]
    name = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in _named(place)).lstrip(".")
    if not place:
        return Refusal(400, f"the body is no JSON object: {first['msg']}")
    if first["type"] in ("extra_forbidden", "none_required"):
        return Refusal(400, f"{name} is not supported by this server", name, "unsupported_parameter")
    if first["type"] == "missing":
        return Refusal(400, f"{name} is missing", name, "missing_required_parameter")
    return Refusal(400, f"{name}: {first['msg'].removeprefix('Value error, ')}", name, "invalid_value")


def _named(place: tuple[int | str, ...]) -> list[int | str]:
    """Without what pydantic adds to tell one type of several from another, and no longer than a line."""
    types = ("str", "int")
    kept = [one for one in place if isinstance(one, int) or (one.replace("_", "").isalnum() and one not in types)]
    return [one if isinstance(one, int) else one[:80] for one in kept] or [repr(one)[:80] for one in place[:1]]
