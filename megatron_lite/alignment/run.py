"""A run after pretraining: rows prepared once, a reference where one is compared with, then the loop of every run.

tokenizer and template -> stores of rows -> steps of the epochs -> reference log-probabilities
-> model and objective -> feed -> Run
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from megatron_lite.alignment.dealing import DataRank
from megatron_lite.alignment.dpo import Dpo
from megatron_lite.alignment.feed import RowsFeed, RowsValidation
from megatron_lite.alignment.reference import kept_reference, reference_of
from megatron_lite.alignment.reward import SCALE, BradleyTerry, Scale
from megatron_lite.alignment.rows_of_run import RowSets, prepared_sets, write_rows
from megatron_lite.alignment.sets import SampleSet, steps_of
from megatron_lite.alignment.tokenizer_of_run import tokenizer_of_run
from megatron_lite.config import AlignedConfig, Config, Resolved, resolve
from megatron_lite.config.aligned import UNCOUNTED
from megatron_lite.config.load import check_tree
from megatron_lite.data.chat_template import ChatTemplate
from megatron_lite.data.tokenizer import Tokenizer
from megatron_lite.exchange.origin import Origin, glance, identity_of, load_origin, open_origin
from megatron_lite.launch import World
from megatron_lite.mesh import Mesh
from megatron_lite.model.freezing import NOTHING
from megatron_lite.model.model import Model
from megatron_lite.model.objective import CrossEntropy, Objective
from megatron_lite.training.between_steps import Meanwhile
from megatron_lite.training.loop import Course, Run, StopRequest, connected
from megatron_lite.training.step import Trainer
from megatron_lite.training.validation import Validation

log = logging.getLogger("megatron_lite")


def align(config: Config, resolved: Resolved, world: World, meanwhile: Meanwhile | None = None) -> str:
    """Train as the one algorithm's section says, to `train.steps` or until a signal; returns why the run ended."""
    assert isinstance(config, AlignedConfig)  # the commands see to it
    mesh, recorder = connected(config, resolved, world)
    tokenizer = tokenizer_of_run(config, mesh)
    sets = prepared_sets(config, tokenizer, world.words)
    config = counted(config, sets)
    resolved = resolve(config, resolved.world_size)
    if config.dpo is not None:
        sets = with_references(sets, config, resolved, mesh)
    with StopRequest().listening() as stop:
        trainer = Trainer(Model(config, resolved, mesh, recorder=recorder), objective_of(config))
        place = DataRank.of(trainer.model)
        feed, valid = RowsFeed(sets.train, config, place), [RowsValidation(one, config, place) for one in sets.valid]
        if mesh.rank == 0:
            write_rows(config, sets, [*feed.fills().values(), *(one.fill() for one in valid)])
        trainer.rehearse(feed.microbatches(0, 1)[0])
        validation = Validation(valid, trainer, divisors={"nll": 1} if config.dpo else {})
        course = Course(feed, validation, tokenizer, notes_of(config), user_prompt(tokenizer, config))
        return Run(trainer, course, stop, meanwhile or Meanwhile()).train()


def objective_of(config: AlignedConfig) -> Objective:
    if config.reward is not None:
        return BradleyTerry.of(config.reward)
    return CrossEntropy() if config.dpo is None else Dpo.of(config.dpo)


def counted(config: AlignedConfig, sets: RowSets) -> AlignedConfig:
    """With the steps that `data.epochs` takes, where it stands for them. Raises UsageError where another key does not
    go with so few.
    """
    if config.train.steps != UNCOUNTED:
        return config
    assert config.data.epochs is not None  # or there would be steps
    steps = steps_of(sets.train, config.data.epochs, config)
    decay = steps if config.optim.decay_steps == UNCOUNTED else config.optim.decay_steps
    changed = {
        "train": config.train.model_copy(update={"steps": steps}),
        "optim": config.optim.model_copy(update={"decay_steps": decay}),
    }
    return check_tree(config.model_copy(update=changed).model_dump(mode="json"), AlignedConfig)  # they fit each other


def with_references(sets: RowSets, config: AlignedConfig, resolved: Resolved, mesh: Mesh) -> RowSets:
    """With the reference's log-probabilities of every pair. Only where they are not kept from before is there a
    reference model, which is gone again before the policy is made.
    """
    assert config.dpo is not None  # it is what compares with one
    path = config.dpo.reference or config.checkpoint.init
    begun = f"initial weights of seed {config.train.seed}, {config.train.initializer_range}"
    origin = None if path is None else glance(path)
    identity = begun if origin is None else identity_of(origin)
    stores = {one.store.key: one.store for one in (*sets.train, *sets.valid)}
    found = {key: kept_reference(store, config, identity, config.cache_dir, mesh) for key, store in stores.items()}
    if any(kept is None for kept in found.values()):
        model = reference_model(config, resolved, mesh, origin)
        found = {key: reference_of(store, model, identity, config.cache_dir) for key, store in stores.items()}

    def compared(some: tuple[SampleSet, ...]) -> tuple[SampleSet, ...]:
        return tuple(replace(one, reference=found[one.store.key]) for one in some)

    return replace(sets, train=compared(sets.train), valid=compared(sets.valid))


def reference_model(config: AlignedConfig, resolved: Resolved, mesh: Mesh, seen: Origin | None) -> Model:
    """Of weights that were seen, an adapter merged (None: those that a run begins with); nothing of it is trained."""
    plain = config.model_copy(update={"lora": None})
    model = Model(plain, resolved, mesh, trainable=NOTHING)
    if seen is not None:
        load_origin(open_origin(seen.path, mesh), plain.model, model.stage, mesh)
    return model


def notes_of(config: AlignedConfig) -> Callable[[Mapping[str, float]], Mapping[str, Any]]:
    """What a checkpoint says beside its weights: of a reward model by which scores are normalized, from the validation
    after its last step, or where there was none from that step's pairs.
    """

    def scale(numbers: Mapping[str, float]) -> Mapping[str, Any]:
        begin = "valid_" if "valid_score" in numbers else ""
        found = Scale.of(numbers[f"{begin}score"], numbers[f"{begin}score_square"])
        return {SCALE: {"mean": found.mean, "deviation": found.deviation}}

    return (lambda numbers: {}) if config.reward is None else scale


def user_prompt(tokenizer: Tokenizer, config: AlignedConfig) -> Callable[[str], list[int]]:
    """A prompt of `train.samples` as what a user says, in the run's chat template."""
    assert tokenizer.chat_template is not None  # the run's was given to it
    chat, system = ChatTemplate(tokenizer.chat_template, tokenizer), config.data.system_prompt
    before = [] if system is None else [{"role": "system", "content": system}]
    return lambda prompt: chat.encode([*before, {"role": "user", "content": prompt}])
