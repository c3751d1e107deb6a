"""What an owner asks of a training node: OpenAI's fine-tuning request, strictly read. Pure.

Clauses: docs/protocols/training-node.md §2. `raw` is what came out of the sealed channel. Whatever
the node would not do is refused by name; nothing is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NoReturn

from confide.errors import FormatError, LocalProtocolError, Reason
from confide.training.image_recipe import ImageRecipe
from confide.training.image_recipe_file import parse_image_recipe
from confide.training.recipe_file import parse_recipe, recipe_with
from confide.training.shares import ENGINES
from confide.wire.json import JsonLimits, JsonValue, Members, jcs, parse_json
from confide.wire.ohttp import Kem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.training.recipe import Recipe
    from confide.training.shares import Engine

__all__ = [
    "SUFFIX_RULE",
    "HandedOver",
    "JobRefused",
    "JobRequest",
    "Mode",
    "is_suffix",
    "parse_job_request",
]

_WHAT: Final = "fine-tuning request"
_REASON: Final = Reason.REQUEST_FORMAT
_LIMITS: Final = JsonLimits(max_bytes=1 << 20, max_depth=8)
_MAX_PAIRS: Final = 16
_MAX_SUFFIX: Final = 64
SUFFIX_RULE: Final = "letters, digits, - and _ only, 64 at most"
_MAX_FILE: Final = 128
# From: docs/protocols/training-node.md §2.3. What `auto` becomes.
_EPOCHS: Final = 3
_BATCH: Final = 1
_LEARNING_RATE: Final = 2e-4
_BETA: Final = 0.1
_CHECKPOINT_EVERY: Final = 100
_MEMBERS: Final = frozenset(
    {
        "model",
        "training_file",
        "validation_file",
        "method",
        "hyperparameters",
        "seed",
        "suffix",
        "metadata",
        "integrations",
        "confide",
    }
)

Mode = Literal["supervised", "dpo"]


class JobRefused(FormatError):
    """A request that this node does not take. `param` is the member to change, `code` says why."""

    def __init__(self, message: str, *, param: str, code: str = "invalid_value") -> None:
        self.message = message
        self.param = param
        self.code = code
        super().__init__(
            f"{_WHAT}: {message}", reason=_REASON, clause="docs/protocols/training-node.md#2"
        )


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The files of a job that goes on here (training-node.md 7.5), by id."""

    handover: str
    checkpoint: str


@dataclass(frozen=True, slots=True)
class JobRequest:
    """
    One job as it was asked for, every `auto` decided.

    `recipe` is the owner's image where one is to train (training-image.md); there are no
    checkpoints then, and `checkpoint_key` is empty. `nonce` is the owner's, for this job alone;
    `expectation` the canonical document that the record will name; `recipient` the public key that
    results are sealed to, `checkpoint_key` the owner's for checkpoints (32 bytes); `handed` is
    there for a job that goes on here. `engine` is what links nodes that train together
    (training-ranks.md §6). Says nothing about the files.
    """

    model: str
    training_file: str
    validation_file: str | None
    recipe: Recipe | ImageRecipe
    suffix: str
    metadata: Mapping[str, str]
    nonce: bytes
    expectation: bytes = field(repr=False)
    recipient: bytes = field(repr=False)
    checkpoint_key: bytes = field(repr=False)
    handed: HandedOver | None = None
    engine: Engine = "ring"

    @property
    def image(self) -> ImageRecipe | None:
        """The owner's image that is to train, None where the node's own loop does."""
        return self.recipe if isinstance(self.recipe, ImageRecipe) else None

    @property
    def steps(self) -> Recipe:
        """The recipe of the node's own loop; `LocalProtocolError` for a job of an image."""
        if isinstance(self.recipe, ImageRecipe):
            raise LocalProtocolError("a job of an image has no steps")
        return self.recipe

    @property
    def mode(self) -> Mode:
        """OpenAI's word for the method; an image may do as it likes."""
        return "dpo" if self.image is None and self.steps.method == "dpo" else "supervised"

    @property
    def seed(self) -> int:
        """The seed; 0 for an image, which has its own, or none."""
        return self.steps.seed if self.image is None else 0

    def hyperparameters(self) -> dict[str, JsonValue]:
        """Return what OpenAI's members say of the recipe, as far as they can."""
        if self.image is not None:
            return {}
        recipe = self.steps
        return {
            "n_epochs": recipe.num_epochs or "auto",
            "batch_size": recipe.sequences_per_step,
            "learning_rate_multiplier": recipe.learning_rate / _LEARNING_RATE,
        }

    def method(self) -> dict[str, JsonValue]:
        """Return OpenAI's `method` member."""
        hyper = self.hyperparameters()
        if self.image is None and self.steps.dpo_beta is not None:
            hyper["beta"] = self.steps.dpo_beta
        return {"type": self.mode, self.mode: {"hyperparameters": hyper}}


def is_suffix(text: str) -> bool:
    """Whether `text` may stand in the name of a tuned model; empty, where there is none (2.4)."""
    plain = text.replace("-", "").replace("_", "")
    return not text or (len(text) <= _MAX_SUFFIX and plain.isascii() and plain.isalnum())


def parse_job_request(raw: bytes, *, model: str) -> JobRequest:
    """
    Read a request for a job on `model`, the one base that the node has.

    Raises `JobRefused`, and `FormatError` where `raw` is no JSON or a member has the wrong type.
    Does not look at files, at evidence, nor whether the nonce was used before.
    """
    value = parse_json(raw, what=_WHAT, reason=_REASON, limits=_LIMITS)
    top = Members(value, what=_WHAT, reason=_REASON)
    if isinstance(value, dict):
        for name in sorted(value.keys() - _MEMBERS):
            raise JobRefused(f"unknown member {name[:64]!r}", param=name[:64], code="unknown")
    asked = top.text("model", max_chars=256)
    if asked != model:
        raise JobRefused(
            f"model: this node trains {model}, and no other", param="model", code="model_not_found"
        )
    if _given(top, "integrations") and top.items("integrations"):
        raise JobRefused(
            "integrations: a node sends nothing elsewhere; leave them out", param="integrations"
        )
    confide = _confide(top)
    validation = _optional(top, "validation_file", _MAX_FILE) or None
    recipe = _recipe(top, confide, model, validation=validation)
    request = JobRequest(
        model=model,
        training_file=top.text("training_file", max_chars=_MAX_FILE),
        validation_file=validation,
        recipe=recipe,
        suffix=_suffix(top),
        metadata=_metadata(top),
        nonce=confide.hexes("nonce", 32),
        expectation=jcs(confide.value("expectation")),
        recipient=_recipient(confide),
        checkpoint_key=b""
        if isinstance(recipe, ImageRecipe)
        else confide.hexes("checkpoint_key", 32),
        handed=None if isinstance(recipe, ImageRecipe) else _handed(confide),
        engine="ring" if isinstance(recipe, ImageRecipe) else _engine(confide),
    )
    confide.end()
    top.end()
    _require_held_out(request)
    return request


def _require_held_out(request: JobRequest) -> None:
    recipe = request.recipe
    if isinstance(recipe, ImageRecipe) or recipe.eval_steps is None:
        return
    if not recipe.val_set_size and request.validation_file is None:
        _refuse("confide.recipe", "eval_steps needs val_set_size, or a validation_file")


def _given(members: Members, name: str) -> bool:
    # The SDKs say null, and `auto`, for what their caller left out.
    return members.has(name) and not members.null(name)


def _chosen(members: Members, name: str) -> JsonValue:
    """Return a member that somebody decided; None where it is absent, null or `auto`."""
    value = members.value(name) if members.has(name) else None
    return None if value == "auto" else value


def _optional(members: Members, name: str, max_chars: int) -> str:
    return members.text(name, max_chars=max_chars) if _given(members, name) else ""


def _confide(top: Members) -> Members:
    if not _given(top, "confide"):
        raise JobRefused(
            "say in `confide` (the SDK's extra_body) to whom results are sealed: "
            "{nonce, expectation, recipient, checkpoint_key}",
            param="confide",
            code="confide_required",
        )
    return top.members("confide")


def _handed(confide: Members) -> HandedOver | None:
    if not _given(confide, "continue"):
        return None
    members = confide.members("continue")
    files = (members.text(name, max_chars=128) for name in ("handover", "checkpoint"))
    handed = HandedOver(*files)
    members.end()
    return handed


def _engine(confide: Members) -> Engine:
    if not _given(confide, "engine"):
        return "ring"
    said = confide.text("engine", max_chars=64)
    found = next((engine for engine in ENGINES if engine == said), None)
    if found is None:
        _refuse("confide.engine", f"one of {', '.join(ENGINES)}")
    return found


def _recipient(confide: Members) -> bytes:
    raw = confide.base64("recipient")
    if len(raw) != Kem.X_WING.public_bytes:
        _refuse("confide.recipient", "an X-Wing public key, raw")
    return raw


def _suffix(top: Members) -> str:
    suffix = _optional(top, "suffix", _MAX_SUFFIX)
    if not is_suffix(suffix):
        _refuse("suffix", SUFFIX_RULE)
    return suffix


def _metadata(top: Members) -> dict[str, str]:
    if not _given(top, "metadata"):
        return {}
    value = top.value("metadata")
    if not isinstance(value, dict) or len(value) > _MAX_PAIRS:
        _refuse("metadata", f"an object of at most {_MAX_PAIRS} pairs")
    found: dict[str, str] = {}
    for name, text in value.items():
        if not isinstance(text, str) or len(name) > 64 or len(text) > 512:
            _refuse("metadata", "keys of at most 64 and texts of at most 512 characters")
        found[name] = text
    return found


def _recipe(
    top: Members, confide: Members, model: str, *, validation: str | None
) -> Recipe | ImageRecipe:
    said = next((name for name in ("image", "recipe") if _given(confide, name)), None)
    if said is None:
        return _from_openai(top, model, validation=validation)
    for name in ("method", "hyperparameters", "seed"):
        if _given(top, name):
            _refuse(name, f"confide.{said} says it already")
    recipe: Recipe | ImageRecipe
    try:
        raw = jcs(confide.value(said))
        recipe = parse_image_recipe(raw) if said == "image" else parse_recipe(raw)
    except FormatError as error:
        raise JobRefused(error.what, param=f"confide.{said}") from error
    if recipe.base_model != model:
        _refuse(f"confide.{said}", f"base_model is not {model}")
    return recipe


def _from_openai(top: Members, model: str, *, validation: str | None) -> Recipe:
    mode, hyper = _mode(top)
    named: dict[str, JsonValue] = {
        "base_model": model,
        "num_epochs": _count(hyper, "n_epochs", _EPOCHS, high=1000),
        "gradient_accumulation_steps": _count(hyper, "batch_size", _BATCH, high=65536),
        "learning_rate": _LEARNING_RATE * _factor(hyper, "learning_rate_multiplier", 1.0),
        "checkpoint_every": _CHECKPOINT_EVERY,
    }
    if validation is not None:
        named["eval_steps"] = _CHECKPOINT_EVERY
    if mode == "dpo":
        named |= {"method": "dpo", "dpo_beta": _factor(hyper, "beta", _BETA)}
    if _given(top, "seed"):
        named["seed"] = top.integer("seed")
    hyper.end()
    return recipe_with(named)


def _mode(top: Members) -> tuple[Mode, Members]:
    if not _given(top, "method"):
        if _given(top, "hyperparameters"):
            return "supervised", top.members("hyperparameters")
        return "supervised", Members({}, what=_WHAT, reason=_REASON)
    if _given(top, "hyperparameters"):
        _refuse("hyperparameters", "they stand inside method")
    method = top.members("method")
    kind = method.text("type", max_chars=32)
    if kind not in ("supervised", "dpo"):
        _refuse("method.type", "supervised or dpo")
    mode: Mode = "dpo" if kind == "dpo" else "supervised"
    hyper = Members({}, what=_WHAT, reason=_REASON)
    if _given(method, mode):
        inner = method.members(mode)
        if _given(inner, "hyperparameters"):
            hyper = inner.members("hyperparameters")
        inner.end()
    method.end()
    return mode, hyper


def _count(hyper: Members, name: str, auto: int, *, high: int) -> int:
    value = _chosen(hyper, name)
    if value is None:
        return auto
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
        _refuse(f"hyperparameters.{name}", f"an integer from 1 to {high}, or auto")
    return value


def _factor(hyper: Members, name: str, auto: float) -> float:
    value = _chosen(hyper, name)
    if value is None:
        return auto
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1000:
        _refuse(f"hyperparameters.{name}", "a number above 0 and at most 1000, or auto")
    return float(value)


def _refuse(param: str, message: str) -> NoReturn:
    raise JobRefused(f"{param}: {message}", param=param)
