"""A tokenizer of either kind by its path."""

from dataclasses import replace
from pathlib import Path

from megatron_lite.data.json_tokenizer import JsonTokenizer
from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_lite.data.tokenizer import MODEL, Tokenizer, TokenizerFiles, read_files
from megatron_lite.errors import DataError


def open_tokenizer(path: str | Path) -> Tokenizer:
    """A SentencePiece .model, a tokenizer.json, or a directory that holds one: a checkpoint's step_N, Hugging Face's.

    Raises DataError for what is neither, or does not say what ends a document.
    """
    return tokenizer_of(read_files(path))


def tokenizer_of(files: TokenizerFiles) -> Tokenizer:
    """Of a model and a tokenizer.json the model is taken, which is the faster and gives U+2581 back, unless tokens were
    added to the other. Raises DataError as `open_tokenizer` does.
    """
    if files.main == MODEL:
        return SentencePieceTokenizer(files)
    tokenizer = JsonTokenizer(files)
    if MODEL in files.content:
        try:
            model = SentencePieceTokenizer(replace(files, main=MODEL))
        except DataError:  # Llama 3 has another kind of file under this name
            return tokenizer
        if model.vocab_size == tokenizer.vocab_size:
            return model
    return tokenizer
