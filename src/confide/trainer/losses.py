"""From token ids to losses: micro batches as tensors, and what the model is told by them.

docs/protocols/training.md 9.1 to 9.3. Sums are taken in the order and shape of `transformers`' own
loss, so that a plain loop over the same micro batches gets the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.trainer.encode import Encoded

__all__ = [
    "Inputs",
    "answer_logprobs",
    "collate",
    "collate_packed",
    "correct_tokens",
    "leaks_between_packed_rows",
    "logits",
    "preference_loss",
    "token_loss",
]

# Labels that are not learnt. From: torch, `cross_entropy`, `ignore_index`.
_NOT_LEARNT = -100


@dataclass(frozen=True, slots=True)
class Inputs:
    """One micro batch. `mask` is None for packed rows, which `positions` tells apart."""

    ids: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor | None

    @property
    def count(self) -> int:
        """How many tokens are learnt."""
        return int((self.labels != _NOT_LEARNT).sum())


def collate(texts: Sequence[Encoded], *, pad: int, device: torch.device) -> Inputs:
    """Put one text on each row, filled up on the right."""
    width = max(map(len, texts))
    ids = torch.full((len(texts), width), pad, dtype=torch.int64)
    labels = torch.full_like(ids, _NOT_LEARNT)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        _write(text, ids[row, : len(text)], labels[row, : len(text)])
        mask[row, : len(text)] = 1
    return Inputs(ids.to(device), labels.to(device), mask.to(device), None)


def collate_packed(rows: Sequence[Sequence[Encoded]], *, pad: int, device: torch.device) -> Inputs:
    """
    Put several texts on each row; positions begin again with each, and with what fills up.

    Without a mask, `transformers` keeps apart what begins at a position of its own.
    """
    width = max(sum(map(len, texts)) for texts in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    labels = torch.full_like(ids, _NOT_LEARNT)
    positions = torch.zeros_like(ids)
    for row, texts in enumerate(rows):
        at = 0
        for text in texts:
            end = at + len(text)
            _write(text, ids[row, at:end], labels[row, at:end])
            positions[row, at:end] = torch.arange(len(text))
            at = end
        positions[row, at:] = torch.arange(width - at)
    return Inputs(ids.to(device), labels.to(device), None, positions.to(device))


def _write(text: Encoded, ids: torch.Tensor, labels: torch.Tensor) -> None:
    ids[:] = torch.tensor(text.ids, dtype=torch.int64)
    learn = torch.frombuffer(bytearray(text.learn), dtype=torch.uint8).bool()
    labels[learn] = ids[learn]


def logits(model: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
    """Return what the model predicts for each position, in float32."""
    made = model(
        input_ids=inputs.ids,
        attention_mask=inputs.mask,
        position_ids=inputs.positions,
        use_cache=False,
    ).logits
    return made.float()  # type: ignore[no-any-return]


def _shifted(labels: torch.Tensor) -> torch.Tensor:
    """Return the label that each position predicts: that of the next one."""
    return functional.pad(labels, (0, 1), value=_NOT_LEARNT)[..., 1:].contiguous()


def token_loss(predicted: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Return the cross entropy of the learnt tokens, added up."""
    return functional.cross_entropy(
        predicted.view(-1, predicted.size(-1)),
        _shifted(inputs.labels).view(-1),
        ignore_index=_NOT_LEARNT,
        reduction="sum",
    )


def correct_tokens(predicted: torch.Tensor, inputs: Inputs) -> int:
    """Return how many learnt tokens are the ones found most likely."""
    return int((predicted.argmax(dim=-1) == _shifted(inputs.labels)).sum())


def answer_logprobs(predicted: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Return the log probability of each row's learnt tokens, added up."""
    wanted = _shifted(inputs.labels)
    each = -functional.cross_entropy(
        predicted.transpose(1, 2), wanted, ignore_index=_NOT_LEARNT, reduction="none"
    )
    return each.sum(dim=1)


def preference_loss(
    policy: torch.Tensor, reference: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the loss of each pair, and how much more the chosen answer gained than the rejected one.

    From: Rafailov et al., Direct Preference Optimization (2023), equation 7. Both arguments hold
    the chosen answers first, then the rejected ones.
    """
    gained = policy - reference
    chosen, rejected = gained.chunk(2)
    margin = beta * (chosen - rejected)
    return -functional.logsigmoid(margin), margin


def leaks_between_packed_rows(model: torch.nn.Module, *, vocabulary: int) -> bool:
    """Whether a row sees the one before it: then packing would train on what no row says."""
    first, second, other = (torch.arange(24) % vocabulary).chunk(3)
    positions = torch.arange(8).repeat(2)[None]
    device = next(model.parameters()).device
    seen = []
    for before in (first, other):
        ids = torch.cat([before, second])[None].to(device)
        inputs = Inputs(ids, ids, None, positions.to(device))
        with torch.no_grad():
            seen.append(logits(model, inputs)[:, 8:])
    return not torch.equal(*seen)
