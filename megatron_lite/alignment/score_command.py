"""`reward --score`: a reward model from where it lies, asked for the scores of a file's rows."""

import shutil
from dataclasses import replace
from pathlib import Path

from megatron_lite.alignment.arguments import config_of
from megatron_lite.alignment.prepare import Rendering
from megatron_lite.alignment.reward import SCALE, Scale
from megatron_lite.alignment.scoring import Scoring, kind_of, score_rows
from megatron_lite.alignment.template import find_template
from megatron_lite.config import AlignedConfig
from megatron_lite.config.load import load_tree
from megatron_lite.exchange.origin import Origin, load_origin, notes_of
from megatron_lite.files import check_output
from megatron_lite.inference.arguments import model_command_line, parse_model
from megatron_lite.inference.opening import Found, found_origin
from megatron_lite.model.freezing import NOTHING
from megatron_lite.model.model import Model


def score(description: str) -> None:
    """Of the command line. Raises UsageError and DataError."""
    parser = model_command_line("reward", description)
    parser.add_argument("--score", metavar="F", type=Path, required=True, help="rows: dialogues, or pairs of answers")
    parser.add_argument("--output", metavar="G.jsonl", type=Path, required=True, help="the rows again, with scores")
    arguments, asked, template = parse_model(parser)
    check_output(arguments.output)
    with found_origin(replace(asked, path=_checkpoint_of(asked.path))) as found:
        model = Model(found.config, found.resolved, found.mesh, trainable=NOTHING)
        load_origin(found.origin, found.config.model, model.stage, found.mesh)
        beside = arguments.output.with_name(f"{arguments.output.name}.rows")  # where all ranks see it
        rendering, scale = _rendering(arguments.score, found, template), scale_of(found.origin)
        score_rows(Scoring(arguments.score, arguments.output, rendering, scale, beside), model)
        if found.mesh.rank == 0:
            shutil.rmtree(beside)


def scale_of(origin: Origin) -> Scale | None:
    """What a checkpoint keeps to normalize scores by; None where it keeps nothing."""
    kept = notes_of(origin).get(SCALE)
    return None if kept is None else Scale(**kept)


def _checkpoint_of(path: str) -> str:
    """A run's configuration stands for what it left."""
    return config_of(load_tree(path, ()), "reward").train.run_dir if path.endswith((".yaml", ".yml")) else path


def _rendering(rows: Path, found: Found, template: str | None) -> Rendering:
    """As the model's own rows were: a row that it cannot take has no score."""
    config, tokenizer = found.config, found.tokenizer
    return Rendering(
        kind=kind_of(rows),
        tokenizer=tokenizer.path,
        template=find_template(tokenizer, None) if template is None else template,
        longest=config.train.sequence_length,
        system_prompt=config.data.system_prompt if isinstance(config, AlignedConfig) else None,
        bad_rows="skip",
    )
