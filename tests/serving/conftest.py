import pytest
from support.serving import save_small, served_of

from megatron_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    directory = tmp_path_factory.mktemp("served")
    run = save_small(directory)
    return served_of(run, SentencePieceTokenizer(directory / "small.model"))
