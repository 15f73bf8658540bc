"""A run made ready: everything the loop touches, built new or from the newest checkpoint."""

import hashlib
import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from emocap_shards.annotation import load_annotation
from emocap_shards.cache import Cache
from emocap_shards.cursor import Cursor
from emocap_shards.errors import StoreError
from emocap_shards.manifest import read_manifest
from emocap_shards.source import Source
from emocap_shards.store import Store, open_store
from emocap_shards.stream import Stream
from safetensors.torch import save_file

from emocap_pretrain import pictures
from emocap_pretrain.checkpoint import checkpoint as checkpoints
from emocap_pretrain.checkpoint.checkpoint import Checkpoint
from emocap_pretrain.config.batch_split import batch_split
from emocap_pretrain.config.schema import Config
from emocap_pretrain.encoders.pair import TowerPair
from emocap_pretrain.engine.engine import Engine
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.loader import Delivery, batches
from emocap_pretrain.quarantine import Quarantine
from emocap_pretrain.run_folder import RunFolder
from emocap_pretrain.tokenizer import Tokenizer
from emocap_pretrain.tracking.mlflow_tracker import MlflowTracker
from emocap_pretrain.tracking.tracker import MemoryTracker, Tracker
from emocap_pretrain.world import World

TOKENIZER_SAMPLES = 20_000
PREVIEWED = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """Seconds of training so far, over all starts, and the row that was read last."""

    seconds: float = 0.0
    row: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Session:
    """The parts of a run on this rank."""

    config: Config
    world: World
    store: Store
    data_digest: str
    tokenizer: Tokenizer
    engine: Engine
    tracker: Tracker
    batches: Iterator[Delivery]
    quarantine: Quarantine
    before: Progress

    def save(self, cursor: Cursor, progress: Progress) -> Checkpoint:
        """Commit a checkpoint that goes on behind `cursor`; a collective."""
        state = {
            "config": self.config.stored(),
            "cursor": cursor.to_json(),
            "data_digest": self.data_digest,
            "progress": asdict(progress),
            "ranks": self.world.place.world,
            "run_id": self.tracker.run_id,
        }
        checkpoint = checkpoints.save(self.store, self.engine.step, state, self._write, self.world)
        if self.world.is_main:
            self._sweep()
        return checkpoint

    def _sweep(self) -> None:
        """Old checkpoints go; a store that refuses costs room, not the run."""
        settings = self.config.checkpoint
        try:
            checkpoints.retain(self.store, keep_last=settings.keep_last, keep_every=settings.keep_every)
        except StoreError as error:
            log.warning("old checkpoints stay: %s", error)

    def _write(self, folder: Path) -> None:
        self.engine.save(folder / checkpoints.ENGINE)
        weights = self.engine.weights()
        if self.world.is_main:
            save_file(weights, folder / checkpoints.WEIGHTS)
            (folder / checkpoints.TOKENIZER).write_text(self.tokenizer.to_json(), encoding="utf-8")


def open_session(config: Config, world: World) -> Session:
    """Build the run on this rank and bring it to the step where it stands; a collective.

    Raises:
        ConfigError: If there are more ranks than samples in a batch, or the run's folder is another run's.
        CheckpointError: If the newest checkpoint is of other data or another number of ranks.
    """
    batch_split(config, world.place.world)
    store = open_store(config.url)
    data_digest = _data_digest(config)
    if config.evaluation.url:
        read_manifest(config.evaluation.url)  # Rather now than after the last step.
    run_id = world.from_main(lambda: RunFolder(store).run_id(config))
    with checkpoints.resumable(store, world) as found:
        if found:
            _check(found[0], config, data_digest, world)
        tokenizer = _tokenizer(config, world, found[1] if found else None)
        torch.manual_seed(config.seed)
        engine = Engine(TowerPair(config, tokenizer.vocabulary, weights=not found), config, world)
        if found:
            engine.load(found[1] / checkpoints.ENGINE)
    start = Cursor.from_json(found[0].state["cursor"]) if found else Cursor()
    stream = _stream(config, world, start)
    tracker = _tracker(config, world, store, run_id, stream)
    pin = world.device.startswith("cuda")
    return Session(
        config=config,
        world=world,
        store=store,
        data_digest=data_digest,
        tokenizer=tokenizer,
        engine=engine,
        tracker=tracker,
        batches=batches(config, stream, tokenizer, pin=pin),
        quarantine=Quarantine.open(store, world, config.data.error_budget),
        before=Progress(**found[0].state["progress"]) if found else Progress(),
    )


def _check(found: Checkpoint, config: Config, data_digest: str, world: World) -> None:
    ranks = found.state["ranks"]
    if ranks != world.place.world:
        raise CheckpointError(
            f"the checkpoint of step {found.step} in {config.url} was saved by {ranks} ranks and now there are "
            f"{world.place.world}: start with cluster.ranks={ranks}, or start a new run from another url."
        )
    if found.state["data_digest"] != data_digest:
        raise CheckpointError(
            f"{_named(config)} is not the data that {config.url} was trained on: a manifest has changed. "
            "Give a new run another url."
        )
    if world.is_main:
        log.info("resuming from step %d", found.step)


def _tokenizer(config: Config, world: World, saved: Path | None) -> Tokenizer:
    if saved:
        return Tokenizer.from_json((saved / checkpoints.TOKENIZER).read_text(encoding="utf-8"))
    settings = config.model.text
    if settings.tokenizer != "data":
        return Tokenizer.load(settings.tokenizer)
    return Tokenizer.from_json(world.from_main(lambda: _train_tokenizer(config)))


def _train_tokenizer(config: Config) -> str:
    """On the first captions of the dataset, in the manifest's order."""
    budget = config.data.error_budget
    stream = Stream(url=_sources(config), global_batch=256, shuffle=False, epochs=1, error_budget=budget)
    samples = itertools.chain.from_iterable(portion.samples for portion in stream.encoded_steps())
    annotations = (sample.annotation for sample in itertools.islice(samples, TOKENIZER_SAMPLES))
    captions = itertools.chain.from_iterable(load_annotation(annotation)[0] for annotation in annotations)
    texts = (text for each in captions for text in (each.whole, each.summary, *each.local))
    return Tokenizer.trained_on(texts, config.model.text.vocabulary).to_json()


def _stream(config: Config, world: World, start: Cursor) -> Stream:
    return Stream(
        url=_sources(config),
        global_batch=config.global_batch,
        seed=config.seed,
        rank=world.place.rank,
        world=world.place.world,
        window_samples=config.shuffle_window,
        drop_last=config.data.drop_last,
        start=start,
        error_budget=config.data.error_budget,
        cache=Cache(config.data.cache, round(config.data.cache_gb * 1e9)) if config.data.cache_gb else None,
    )


def _sources(config: Config) -> tuple[Source, ...]:
    return tuple(Source(source.url, source.weight) for source in config.data.sources)


def _named(config: Config) -> str:
    return " with ".join(open_store(source.url).url for source in config.data.sources)


def _data_digest(config: Config) -> str:
    """Of the one manifest, or of all of them."""
    digests = [read_manifest(source.url).digest for source in config.data.sources]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _tracker(config: Config, world: World, store: Store, run_id: str | None, stream: Stream) -> Tracker:
    """MLflow on rank 0; the others remember nothing that anyone asks for."""
    begun: list[Tracker] = []

    def begin() -> str:
        begun.append(MlflowTracker.start(config, run_id))
        if run_id is None:
            RunFolder(store).begin(config, begun[0].run_id)
            _preview(begun[0], stream)
        return begun[0].run_id

    shared = world.from_main(begin)
    return begun[0] if begun else MemoryTracker(run_id=shared)


def _preview(tracker: Tracker, stream: Stream) -> None:
    with TemporaryDirectory(prefix="emocap-") as folder:
        path = Path(folder) / "samples.png"
        first = replace(stream, rank=0, world=1, global_batch=PREVIEWED, shuffle=False, start=Cursor(), drop_last=False)
        pictures.preview(next(first.steps()).samples, path)
        tracker.picture("pictures/samples.png", path)
