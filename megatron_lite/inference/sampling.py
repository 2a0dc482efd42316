"""Which token comes next: functions of logits, of what was written so far, and of a key for random numbers.

    logits + bias -> penalties -> / temperature -> top_k -> top_p -> min_p -> one is drawn

The order is that of transformers' generate. Each of the three filters is a least value that a token must have, so equal
tokens stay or go together. Drawing is a race (the Gumbel-max trick with one logarithm less): the token with the largest
probability / exponential number wins. Who wins changes with rounding only where two are as good as level.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, log

import torch
from torch import Tensor

from megatron_lite.errors import UsageError
from megatron_lite.inference.random_numbers import exponentials

RANKED = 1024  # tokens that are sorted first for top_p: nearly always they reach it


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn.

    temperature                    0 takes the most likely one, whatever the filters are
    top_k, top_p, min_p            of the most likely tokens so many; the fewest that have this probability together
                                   (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751, section 3.1); those that
                                   have this share of the likeliest one's (Nguyen et al. 2024, arXiv 2407.01082); None
                                   is no filter
    repetition_penalty             divides positive and multiplies negative logits of tokens in the prompt or the answer
                                   (Keskar et al. 2019, arXiv 1909.05858, section 4.1)
    presence, frequency _penalty   subtracted from logits of tokens in the answer: once, and for each time
    logit_bias                     added to the logits of these tokens

    Raises UsageError for values out of range.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < inf:
            raise UsageError(f"temperature = {self.temperature}: must be 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k = {self.top_k}: must be 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p = {self.top_p}: must be above 0, and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p = {self.min_p}: must be 0 to 1")
        if not 0 < self.repetition_penalty < inf:
            raise UsageError(f"repetition_penalty = {self.repetition_penalty}: must be a positive number")
        for name in ("presence_penalty", "frequency_penalty"):
            if not isfinite(getattr(self, name)):
                raise UsageError(f"{name} = {getattr(self, name)}: must be a number")
        for token, bias in self.logit_bias.items():
            if token < 0 or not bias < inf:
                raise UsageError(f"logit_bias {token}: {bias}: must be a token id and a number, or -inf to forbid it")

    @property
    def changes_logits(self) -> bool:
        """Whether the most likely token may be another than the model's."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0) or bool(self.logit_bias)


@dataclass(frozen=True)
class Draw:
    """Of one row: how, with the random numbers of which key, after which prompt and which answer so far; ids from
    `vocab_size` on are never drawn.
    """

    sampling: Sampling
    key: int
    prompt: Sequence[int] = ()
    answer: Sequence[int] = ()
    vocab_size: int | None = None


def choose(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """One token for each row of logits [N, V] -> int64 [N]."""
    logits = adjusted(logits, draws)
    tokens = logits.argmax(-1)
    drawn = [number for number, draw in enumerate(draws) if draw.sampling.temperature > 0]
    if drawn:
        some = [draws[number] for number in drawn]
        kept = filtered(logits[drawn], [draw.sampling for draw in some])
        runners = exponentials([draw.key for draw in some], kept.shape[-1], kept.device)
        tokens[drawn] = kept.exp_().div_(runners).argmax(-1)
    return tokens


def adjusted(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """With bias and penalties, in float32 or wider; -inf for ids that are never drawn."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if all(not draw.sampling.changes_logits and draw.vocab_size is None for draw in draws):
        return exact
    exact = exact.clone()
    for row, draw in zip(exact, draws, strict=True):
        _adjust(row, draw)
    return exact


def _adjust(row: Tensor, draw: Draw) -> None:
    """In place, logits [V] of one row."""
    sampling = draw.sampling
    if sampling.logit_bias:
        row[_ids(sampling.logit_bias, row)] += row.new_tensor(list(sampling.logit_bias.values()))
    if sampling.repetition_penalty != 1:
        seen = _ids({*draw.prompt, *draw.answer}, row)
        penalty = sampling.repetition_penalty
        row[seen] = torch.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        counts = Counter(draw.answer)
        often = row.new_tensor(list(counts.values()))
        row[_ids(counts, row)] -= sampling.presence_penalty + sampling.frequency_penalty * often
    if draw.vocab_size is not None:
        row[draw.vocab_size :] = -inf


def _ids(tokens: Mapping[int, float] | set[int], row: Tensor) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.int64, device=row.device)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that is drawn from, [N, V] in float64, given logits that are `adjusted`; temperature above 0."""
    return filtered(logits, [sampling] * len(logits)).softmax(-1)


def filtered(logits: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Logits [N, V] of the distribution that is drawn from: float64, the largest 0, -inf for what is left out."""
    exact = logits.to(torch.float64)
    # Subtracting the maximum first keeps a tiny temperature from overflowing.
    scaled = (exact - exact.amax(-1, keepdim=True)) / _column([s.temperature for s in samplings], exact)
    if any(s.top_k is not None for s in samplings):
        _leave_out(scaled, _top_k_least(scaled, [s.top_k or scaled.shape[-1] for s in samplings]))
    if any(s.top_p is not None for s in samplings):
        _leave_out(scaled, _top_p_least(scaled, [1.0 if s.top_p is None else s.top_p for s in samplings]))
    if any(s.min_p for s in samplings):
        _leave_out(scaled, _column([log(s.min_p) if s.min_p else -inf for s in samplings], scaled))
    return scaled


def _leave_out(scaled: Tensor, least: Tensor) -> None:
    """What is below the least value [N, 1], in place."""
    scaled.masked_fill_(scaled < least, -inf)


def _top_k_least(scaled: Tensor, top_k: Sequence[int]) -> Tensor:
    """The k-th largest of each row; rows that keep all have V."""
    size = scaled.shape[-1]
    limits = [min(k, size) for k in top_k]
    most = max((k for k in limits if k < size), default=1)
    ranked = scaled.topk(most, -1).values
    least = [ranked[row, k - 1] if k < size else ranked.new_tensor(-inf) for row, k in enumerate(limits)]
    return torch.stack(least)[:, None]


def _top_p_least(scaled: Tensor, top_p: Sequence[float]) -> Tensor:
    """The least value of the fewest most likely tokens that reach p; a row with 1 keeps all."""
    log_sum, wanted = scaled.logsumexp(-1, keepdim=True), _column(top_p, scaled)
    count = min(RANKED, scaled.shape[-1])
    ranked = scaled.topk(count, -1).values
    reached = (ranked - log_sum).exp_().cumsum(-1)
    if count < scaled.shape[-1] and bool(((reached[:, -1:] < wanted) & (wanted < 1)).any()):
        ranked = scaled.sort(-1, descending=True).values
        reached = (ranked - log_sum).exp_().cumsum(-1)
    kept = torch.cat([torch.zeros_like(wanted), reached[:, :-1]], -1) < wanted  # of all before it
    least = ranked.masked_fill_(kept.logical_not(), inf).amin(-1, keepdim=True)
    return torch.where(wanted < 1, least, -inf)


def _column(values: Sequence[float], logits: Tensor) -> Tensor:
    return logits.new_tensor(values)[:, None]


@dataclass(frozen=True)
class LogProbabilities:
    """Of the model's own distribution, at temperature 1, before bias, penalties and filters: in float32 or wider.

    chosen [N]; of the most likely tokens, int64 [N, K], each row's largest first, theirs [N, K].
    """

    chosen: Tensor
    tokens: Tensor
    others: Tensor


def log_probabilities(logits: Tensor, tokens: Tensor, most: int) -> LogProbabilities:
    """Of tokens int64 [N] after logits [N, V], and of so many most likely ones."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_sum = exact.logsumexp(-1, keepdim=True)
    chosen = exact.gather(-1, tokens[:, None]) - log_sum
    values, ids = exact.topk(min(most, exact.shape[-1]), -1)
    return LogProbabilities(chosen.squeeze(-1), ids, values - log_sum)
