"""The identity of a vocabulary, whatever folder it lies in."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Identify a tokenizer's vocabulary and its sequence markers.

    Two folders with the same vocabulary give the same fingerprint; any token with another id, any token more
    or less, and any other beginning- or end-of-sequence id give another one.

    Args:
        tokenizer: slow or fast tokenizer; added tokens count as vocabulary.

    Returns:
        A sha256 in hexadecimal over the (token, id) pairs sorted by id, and the bos and eos ids.
    """
    digest = hashlib.sha256()
    for token, token_id in sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0])):
        encoded = token.encode("utf-8", "surrogatepass")
        digest.update(f"{token_id} {len(encoded)} ".encode())  # the length keeps pairs apart
        digest.update(encoded)
    digest.update(f"bos {tokenizer.bos_token_id} eos {tokenizer.eos_token_id}".encode())
    return digest.hexdigest()
