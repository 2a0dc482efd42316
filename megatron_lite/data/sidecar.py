"""PREFIX.json beside a .bin and .idx: what those two cannot say, above all which tokenizer wrote them."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from megatron_lite.errors import DataError
from megatron_lite.files import partial_path, publish


def sidecar_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.json")


@dataclass(frozen=True)
class TokenizerIdentity:
    """sha256 of the tokenizer's model file, the number of its pieces, the id that ends a document, and all special ids.

    The sha256 says the rest, so two identities are equal without a look at `special_tokens`, which older files lack.
    """

    sha256: str
    vocab_size: int
    eod_id: int
    special_tokens: dict[str, int] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Sidecar:
    tokenizer: TokenizerIdentity | None  # None: written from ids by a program that named no tokenizer
    dtype: str
    documents: int
    sequences: int
    tokens: int
    max_token_id: int  # -1 without tokens
    bin_bytes: int
    bin_xxh3: str  # xxh3, 128 bits, hexadecimal
    idx_xxh3: str
    text_bytes: int | None = None  # of the text that became these tokens; None where nobody counted

    @property
    def idx_bytes(self) -> int:
        """34 of the header; 4 of length and 8 of offset a sequence, 8 a document; and 8 more."""
        return 42 + 12 * self.sequences + 8 * self.documents

    @classmethod
    def load(cls, prefix: str | Path) -> "Sidecar | None":
        """The sidecar of a data set, None where there is none. Raises DataError for one that cannot be read."""
        path = sidecar_path(prefix)
        if not path.exists():
            return None
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields["tokenizer"] is not None:
                fields["tokenizer"] = TokenizerIdentity(**fields["tokenizer"])
            return cls(**fields)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} is no sidecar of a data set ({error}); without it the data set opens") from None

    def save(self, prefix: str | Path) -> None:
        """Written whole or not at all."""
        path = sidecar_path(prefix)
        partial_path(path).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")
        publish(path)

    def check(self, prefix: str | Path, dtype: str, bin_bytes: int, sequences: int, documents: int) -> None:
        """Raises DataError unless the sidecar describes these files."""
        found = {"dtype": dtype, "bin_bytes": bin_bytes, "sequences": sequences, "documents": documents}
        for name, value in found.items():
            if (said := getattr(self, name)) != value:
                raise DataError(
                    f"{sidecar_path(prefix)} says {name} {said}, the data set has {value}; it belongs to other "
                    f"files, or these are cut short"
                )
