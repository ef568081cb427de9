"""Widening a stored model's vocabulary: rows for new tokens in input embeddings, output embeddings and output bias."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from typing import TYPE_CHECKING

import xxhash

from colossal_llama.errors import UserError
from colossal_llama.model.new_rows import BLOCK, INIT_METHODS, InitMethod, NewTokens, OldRows, Role, mean_of_rows
from colossal_llama.model.stored_tensors import Replacement, StoredTensor, copy_range
from colossal_llama.model.weight_check import spellings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from colossal_llama.model.auxiliary import AuxiliaryVectors


@dataclasses.dataclass(frozen=True)
class RowTensor:
    """A stored tensor with one row a token.

    Attributes:
        stored: where it lies; of shape (rows, width), or (rows,) for a bias.
        role: what the model does with it.
        is_bias: whether it is the output bias.
    """

    stored: StoredTensor
    role: Role
    is_bias: bool = False

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.stored.shape[0]


@dataclasses.dataclass(frozen=True)
class InitSettings:
    """How new rows start.

    Attributes:
        method: a name in ``INIT_METHODS``.
        seed: of the methods that draw.
        deviation: standard deviation of a fresh row.
        auxiliary: token vectors, for ``focus``.
    """

    method: str = "weighted_mean"
    seed: int = 42
    deviation: float = 0.02
    auxiliary: "AuxiliaryVectors | None" = None


def find_row_tensors(model: "PreTrainedModel", stored: Mapping[str, StoredTensor]) -> list[RowTensor]:
    """The stored tensors with a row a token.

    Args:
        model: the outline of the model (on the meta device will do), with its weights tied where it ties them.
        stored: the checkpoint's tensors. One that was saved from the model without its head lacks the base
            model's prefix, as GPT-2's published one does.

    Returns:
        Input embeddings first, then output embeddings and output bias where they are stored. A checkpoint may
        store tied embeddings once or twice.

    Raises:
        UserError: their elements are no floating numbers.
    """
    source, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = output is not None and output.weight is source.weight
    wanted: list[tuple[torch.Tensor, Role, bool]] = [(source.weight, "tied" if tied else "input", False)]
    if output is not None and not tied:
        wanted.append((output.weight, "output", False))
    if output is not None and getattr(output, "bias", None) is not None:
        wanted.append((output.bias, "output", True))
    found = []
    for parameter, role, is_bias in wanted:
        names = [name for name, one in model.named_parameters(remove_duplicate=False) if one is parameter]
        places = [stored[name] for name in spellings(names, model.base_model_prefix) if name in stored]
        found += [RowTensor(place, role, is_bias) for place in places]
    for one in found:
        if one.stored.dtype not in _torch_dtypes():
            raise UserError(
                f"{one.stored.file}: {one.stored.name} is stored as {one.stored.dtype}; expected one of "
                f"{', '.join(_torch_dtypes())}: widen the model before it is quantised"
            )
    return found


def _torch_dtypes() -> dict[str, "torch.dtype"]:
    import torch

    return {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def rows_needed(rows: int, tokens: NewTokens, pad_to_multiple_of: int, where: str) -> int:
    """The number of embedding rows of the wider model.

    A model that already has more rows than tokens (Qwen) keeps them all.

    Raises:
        UserError: the model has fewer rows than the old ids need.
    """
    if rows <= max(tokens.old_ids):
        raise UserError(
            f"the model in {where} has {rows} embedding rows but its tokenizer has ids up to {max(tokens.old_ids)}; "
            "give the tokenizer that the model was trained with"
        )
    needed = max([rows, *(token_id + 1 for token_id in tokens.new_ids)])
    return needed + -needed % pad_to_multiple_of


class WiderTensor:
    """One tensor of the wider model: the old rows bit for bit, new tokens' rows, padding rows.

    Rows that are appended without a token are inert: each is the mean of the old tokens' rows, so its logit is the
    mean of the old tokens' logits. It is never the largest, and the softmax gives it no more than the mean
    probability of an old token (the exponential is convex). A zero row would not do: its logit of 0 outranks
    every token where all logits are negative.

    New ids that fall on rows which no token used overwrite them. Nothing is computed before the tensor is written.
    """

    def __init__(self, tensor: RowTensor, rows: int, tokens: NewTokens, settings: InitSettings, number: int) -> None:
        self._tensor = tensor
        self._rows = rows
        self._tokens = tokens
        self._settings = settings
        self._seed = settings.seed + number
        self._row_bytes = tensor.stored.size // tensor.rows
        self._seen: Counter[int] = Counter()

    def replacement(self) -> Replacement:
        """What to write in place of the old tensor."""
        return Replacement((self._rows, *self._tensor.stored.shape[1:]), self._write)

    @property
    def identical(self) -> int:
        """New rows that equal another new row in every bit; known once the tensor is written."""
        return sum(count for count in self._seen.values() if count > 1)

    def _write(self, out: FileIO) -> None:
        tensor, tokens = self._tensor, self._tokens
        start = out.tell()
        with open(tensor.stored.file, "rb", buffering=0) as reader:
            copy_range(reader, tensor.stored.start, tensor.stored.size, out)
            weight = read_rows(tensor.stored, reader)
        method: InitMethod = INIT_METHODS.get(self._settings.method)
        old = OldRows(
            weight=weight,
            mean=mean_of_rows(weight, tokens.old_ids),
            role=tensor.role,
            is_bias=tensor.is_bias,
            seed=self._seed,
            deviation=self._settings.deviation,
            auxiliary=self._settings.auxiliary,
        )
        done = 0
        for block in method(old, tokens):
            rows = block.to(weight.dtype)
            self._set_apart(rows, tokens.new_ids[done : done + len(rows)], weight)
            self._seen.update(_row_hashes(rows))
            self._put(out, start, tokens.new_ids[done : done + len(rows)], rows)
            done += len(rows)
        padding = sorted(set(range(tensor.rows, self._rows)).difference(tokens.new_ids))
        for first in range(0, len(padding), BLOCK):
            ids = padding[first : first + BLOCK]
            self._put(out, start, ids, old.mean.to(weight.dtype).repeat(len(ids), 1))
        out.seek(start + self._rows * self._row_bytes)

    def _set_apart(self, rows: "torch.Tensor", ids: Sequence[int], weight: "torch.Tensor") -> None:
        """Add a tenth of a row's usual deviation to rows of control tokens that are zero or equal to one before."""
        import torch

        draw = torch.Generator().manual_seed(self._seed)
        seen = set(self._seen)
        for at, number in enumerate(ids):
            if number in self._tokens.control_ids and (not rows[at].any() or _row_hashes(rows[at : at + 1])[0] in seen):
                deviation = float(weight[: 4 * BLOCK].float().std()) or self._settings.deviation
                noise = 0.1 * deviation * torch.randn(rows.shape[1], generator=draw)
                rows[at] = (rows[at].float() + noise).to(rows.dtype)
            seen.update(_row_hashes(rows[at : at + 1]))

    def _put(self, out: FileIO, start: int, ids: Sequence[int], rows: "torch.Tensor") -> None:
        """Write rows to the places of their ids, neighbours at once."""
        for first, stop in _runs(ids):
            out.seek(start + ids[first] * self._row_bytes)
            view = _as_bytes(rows[first:stop]).cast("B")
            while view:
                view = view[out.write(view) or 0 :]


def _runs(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The places (first, stop) of consecutive numbers."""
    first = 0
    for at in range(1, len(ids) + 1):
        if at == len(ids) or ids[at] != ids[at - 1] + 1:
            yield first, at
            first = at


def _as_bytes(rows: "torch.Tensor") -> memoryview:
    import torch

    return memoryview(rows.contiguous().view(torch.uint8).numpy())  # type: ignore[arg-type]


def _row_hashes(rows: "torch.Tensor") -> list[int]:
    import torch

    return [xxhash.xxh3_128_intdigest(row) for row in rows.contiguous().view(torch.uint8).numpy()]


def read_rows(stored: StoredTensor, reader: FileIO) -> "torch.Tensor":
    """A stored tensor as (rows, width) in its own dtype; a bias gets width 1.

    Read and not mapped: a mapping of the whole file would count against the process's limits.

    Raises:
        OSError: the file cannot be read.
    """
    import torch

    weight = torch.empty(stored.shape, dtype=_torch_dtypes()[stored.dtype])
    view = memoryview(weight.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    reader.seek(stored.start)
    while view:
        count = reader.readinto(view)
        if not count:
            raise OSError(5, "ended while it was read", reader.name)
        view = view[count:]
    return weight.reshape(stored.shape[0], -1)


@dataclasses.dataclass(frozen=True)
class WideningReport:
    """What was done to a model's vocabulary.

    Attributes:
        old_rows, rows: embedding rows before and after.
        new_tokens: how many ids were added.
        padding_rows: appended rows without a token.
        unknown_tokens: new tokens of which the old tokenizer knows nothing.
        identical: for each widened tensor but the bias, how many new rows equal another one.
        method: the initialisation method.
        dtype: of the input embeddings, in the format's name.
        without_vector: new tokens without an auxiliary vector, or None where none are used.
        note: what else to tell about the source's embeddings, or None.
    """

    old_rows: int
    rows: int
    new_tokens: int
    padding_rows: int
    unknown_tokens: int
    identical: dict[str, int]
    method: str
    dtype: str
    without_vector: int | None = None
    note: str | None = None

    def describe(self) -> str:
        """Lines for people."""
        lines = [
            f"embedding rows: {self.old_rows} -> {self.rows}; {self.new_tokens} new tokens ({self.method}), "
            f"{self.padding_rows} padding rows; {self.dtype}"
        ]
        if self.unknown_tokens:
            lines.append(f"{self.unknown_tokens} new tokens have no old sub-tokens and start from the global mean")
        if self.without_vector:
            lines.append(f"{self.without_vector} new tokens have no auxiliary vector and start from their mean")
        identical = ", ".join(f"{count} in {name}" for name, count in self.identical.items())
        lines.append(f"new rows that equal another new row: {identical}")
        if self.method == "mean" and any(self.identical.values()):
            lines.append(
                "warning: tokens with identical rows cannot be told apart until training moves them apart; "
                "--init_method weighted_mean weights sub-tokens by length and position"
            )
        if self.note:
            lines.append(self.note)
        return "\n".join(lines)


def plan_widening(
    tensors: Sequence[RowTensor], rows: int, tokens: NewTokens, settings: InitSettings
) -> dict[str, WiderTensor]:
    """The wider tensors by name. The copies of tied embeddings get the same rows, other tensors draws of their own."""
    numbers = {role: at for at, role in enumerate(dict.fromkeys((one.role, one.is_bias) for one in tensors))}
    return {
        one.stored.name: WiderTensor(one, rows, tokens, settings, numbers[one.role, one.is_bias]) for one in tensors
    }


def report_widening(
    tensors: Sequence[RowTensor], wider: Mapping[str, WiderTensor], rows: int, tokens: NewTokens, settings: InitSettings
) -> WideningReport:
    """What the wider tensors, once written, amount to."""
    without_vector = None
    if settings.auxiliary is not None:
        without_vector = int((settings.auxiliary.places[list(tokens.new_ids)] < 0).sum())
    return WideningReport(
        old_rows=tensors[0].rows,
        rows=rows,
        new_tokens=len(tokens.new_ids),
        padding_rows=len(set(range(tensors[0].rows, rows)).difference(tokens.new_ids)),
        unknown_tokens=sum(not group for group in tokens.sub_tokens),
        identical={one.stored.name: wider[one.stored.name].identical for one in tensors if not one.is_bias},
        method=settings.method,
        dtype=tensors[0].stored.dtype,
        without_vector=without_vector,
    )
