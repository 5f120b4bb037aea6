"""What goes over the wire as JSON: the bodies of requests, and how a wrong one is put into a sentence."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastdiff.process.checks import nearest_name, shown

__all__ = ["Failure", "ImagesRequest", "ImagesResponse", "Progress", "parsed"]

_Number = Annotated[float, Field(allow_inf_nan=False)]
# Of a list, whatever the engine's limits are: reading stops there.
_LONGEST = 2**16


class ImagesRequest(BaseModel):
    """The body of POST /v1/images.

    What may stand in a field is `fastdiff.serving.Request`'s; images and masks are PNGs in base64.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    num: int = Field(1, description="How many images.")
    sampler: str = Field("ddim", description="One of the samplers of /v1/info.")
    steps: int | None = Field(None, description="Network evaluations per image; the sampler's default when left out.")
    options: dict[str, bool | int | _Number | str | list[_Number] | None] = Field(
        {}, description="Of the sampler, such as eta; with a mask jump_length and jump_repeats."
    )
    seed: int = Field(0, description="In [0, 2^64).")
    sample_ids: list[int] | None = Field(
        None, max_length=_LONGEST, description="One per image; 0 to num - 1 when left out."
    )
    labels: list[int | str] | None = Field(
        None, max_length=_LONGEST, description="Numbers or names of classes, one per image."
    )
    guidance: _Number | None = Field(None, description="Scale of classifier-free guidance; 1 is none.")
    null_label: int | str | None = Field(None, description="The null class, where the model does not say it.")
    image: str | list[str] | None = Field(None, description="A PNG in base64, or num of them: to vary or to inpaint.")
    mask: str | None = Field(None, description="A PNG in base64: white where a pixel of the image is known.")
    strength: _Number | None = Field(None, description="How far to vary the image, in [0, 1].")
    previews: int = Field(0, description="A preview every so many evaluations; 0 for none.")
    priority: int = Field(0, description="Higher goes first.")
    deadline: _Number | None = Field(None, description="Seconds within which it must be done.")
    size: int | list[int] | None = Field(None, description="A side in pixels, or [height, width]; the model's own.")


# What a field must be, where the type was wrong already.
_EXPECTED = {
    "num": "a whole number",
    "sampler": "the name of a sampler",
    "steps": "a whole number",
    "options": "an object of names with numbers, texts, true, false, or lists of numbers",
    "seed": "a whole number",
    "sample_ids": "a list of whole numbers, one per image",
    "labels": "a list of numbers or names of classes, one per image",
    "guidance": "a finite number",
    "null_label": "the number or name of a class",
    "image": "a PNG in base64, or a list of them",
    "mask": "a PNG in base64",
    "strength": "a finite number",
    "previews": "a whole number",
    "priority": "a whole number",
    "deadline": "a finite number",
    "size": "a whole number or [height, width]",
}


class ImagesResponse(BaseModel):
    """What POST /v1/images answers, as JSON, and GET /v1/requests/{id} when it is done."""

    id: str
    seed: int
    sample_ids: list[int]
    images: list[str] = Field(description="PNGs in base64.")
    sampler: str
    steps: int
    seconds: float = Field(description="From the request to the last image.")


class Progress(BaseModel):
    """What GET /v1/requests/{id} answers while a request waits or runs."""

    id: str
    done: int = Field(description="Evaluations, over all images.")
    total: int = Field(description="Of so many; 0 while it is not known.")


class Failure(BaseModel):
    """What went wrong, in one sentence."""

    detail: str
    id: str


def parsed(body: bytes) -> ImagesRequest:
    """The request that a body holds.

    Raises:
        ValueError: it is no JSON, or not of this form; the message is one sentence that names the field.
    """
    try:
        return ImagesRequest.model_validate_json(body)
    except ValidationError as error:
        raise ValueError(_sentence(error.errors(include_url=False)[0])) from error


def _sentence(fault: Any) -> str:
    if fault["type"] == "json_invalid":
        return f"the body is no JSON: {fault['ctx']['error']}"
    if not fault["loc"]:
        return f"the body must be a JSON object, got {shown(fault['input'])}"
    field = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        return f"unknown field {shown(field)}: {nearest_name(field, ImagesRequest.model_fields)}"
    # Of options and lists, the entry: but not the member of a union, which the path ends with.
    where = field + "".join(f"[{part}]" for part in fault["loc"][1:2] if isinstance(part, int) or field == "options")
    return f"{field} must be {_EXPECTED[field]}, got {shown(fault['input'])}" + (
        f" at {where}" if where != field else ""
    )
