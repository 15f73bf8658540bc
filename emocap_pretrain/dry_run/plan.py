"""Plans a run without starting it, and formats the plan for `--dry-run`.

`RunPlan.of` computes the split of the batch and the memory of a rank (`memory.py`), and reads the manifests of the
datasets. `RunPlan.text` formats them, and adds the backend of each loss and the forecast (`outlook.py`).
`preflight.py` checks whether the run can start.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import yaml
from emocap_kernels.backend import BackendChoice
from emocap_kernels.errors import NotSupportedError
from emocap_shards.errors import ShardsError
from emocap_shards.inspecting.wording import counted, size, wrapped
from emocap_shards.manifest import Manifest, read_manifest
from emocap_shards.mask import masked_url
from emocap_shards.store import open_store

from emocap_pretrain.config.batch_split import BatchSplit, batch_split
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.datasets import Filters, open_filters, used_samples
from emocap_pretrain.dry_run.cost import cost_rows
from emocap_pretrain.dry_run.fabric import device_flops
from emocap_pretrain.dry_run.memory import MemoryEstimate, empty_model, estimate
from emocap_pretrain.dry_run.outlook import Assumptions, Outlook
from emocap_pretrain.dry_run.step import Speed
from emocap_pretrain.dry_run.trained import trained_rows
from emocap_pretrain.dry_run.workload import Workload
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.logs import shown
from emocap_pretrain.training.objective import Objective, vector_dtype

# The assumed rate of an unknown device: that of an H100 in bfloat16 for a GPU (True), and of one CPU core in float32.
LOSS_FLOPS_PER_S = {True: 400e12, False: 50e9}


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Holds the plan of a run: how the batch is divided, the memory of a rank, the datasets, and a forecast.

    Attributes:
        config: The config of the run.
        ranks: World size.
        on_gpu: Whether the ranks use GPUs.
        split: How a batch is divided over the ranks.
        memory: The memory of a rank.
        manifests: The manifests of the datasets; empty if one of them cannot be read.
        assumed: The user's assumptions for the forecast.
        filters: The filters of the datasets.
    """

    config: Config
    ranks: int
    on_gpu: bool
    split: BatchSplit
    memory: MemoryEstimate
    manifests: tuple[Manifest, ...]
    assumed: Assumptions
    filters: Filters = ()

    @classmethod
    def of(cls, config: Config, ranks: int, *, on_gpu: bool, assumed: Assumptions | None = None) -> "RunPlan":
        """Plans a run. This traces a step of the model on fake tensors, which takes seconds, and reads the manifests.

        Raises:
            ConfigError: If there are more ranks than samples in a batch, or the memory cannot be estimated.
        """
        split = batch_split(config.global_batch, config.micro_batch, ranks=ranks)
        memory = estimate(config, ranks, on_gpu=on_gpu)
        manifests, filters = _datasets(config)
        return cls(config, ranks, on_gpu, split, memory, manifests, assumed or Assumptions(), filters)

    def text(self, *, full: bool = False) -> str:
        """Returns the plan as the text that `--dry-run` prints. With `full`, the resolved config follows."""
        rows = (
            *self._split(),
            *self._losses(),
            *self.memory.lines(),
            *trained_rows(empty_model(self.config), self.config.optimizer),
            *self._data(),
            *self._outlook().rows(),
            *self._cost(),
        )
        # Secrets are masked before the rows are broken into lines.
        lines = "\n".join(line for name, value in rows for line in wrapped(shown(value), f"{name:<16}"))
        if not full:
            return lines
        resolved = yaml.safe_dump(self.config.stored(), sort_keys=False, allow_unicode=True)
        return f"{lines}\n\n# the resolved config\n{resolved.rstrip()}"

    def _split(self) -> list[tuple[str, str]]:
        device = "GPU" if self.on_gpu else "CPU process"
        return [
            ("devices", f"{counted(self.ranks, 'rank')}, one {device} each"),
            ("batch", f"global {self.config.global_batch} over {counted(self.ranks, 'rank')}, {self._passes()}"),
        ]

    def _passes(self) -> str:
        rows, passes = f"{counted(self.split.rows, 'row')} each", self.split.passes
        return f"{rows} in {passes} passes, representations cached" if passes > 1 else f"{rows} in one pass"

    def _losses(self) -> list[tuple[str, str]]:
        """Returns a row for each backend (implementation) of the losses that is used, such as "fused".

        The row lists the caption parts whose losses the backend computes, and why the backend is chosen for them. The
        choice depends on the device. So if the ranks use GPUs but this host has none, one row says that the backends
        are chosen when the run starts. Each label has a row of its own, because its loss has no backends.

        Raises:
            ConfigError: If the backend that the settings name cannot compute a loss on this device.
        """
        settings, engine = self.config.objective, self.config.engine
        objective = Objective.of(settings, precision=engine.precision)
        of_labels = [f"{term.settings.name}: {term}" for term in objective.labels]
        # The choice of a backend depends on the device, so it cannot be made on a host without one.
        if self.on_gpu and not torch.cuda.is_available():
            chosen = f"{settings.backend}, chosen when the run starts on its GPUs"
            return _under("losses", [chosen, *of_labels] if objective.terms else of_labels)
        # A tensor without rows suffices, because the choice does not depend on the number of rows.
        dtype = vector_dtype(settings, engine.precision)
        vectors = torch.empty(0, self.config.model.embedding, dtype=dtype, device="cuda" if self.on_gpu else "cpu")
        parts: dict[BackendChoice, list[str]] = {}
        try:
            for term in objective.terms:
                parts.setdefault(term.backend(vectors), []).append(term.part.name)
        except NotSupportedError as error:
            raise ConfigError(f"objective.backend: {error}") from None
        lines = [f"{', '.join(names)}: {choice.backend}, {choice.reason}" for choice, names in parts.items()]
        return _under("losses", lines + of_labels)

    def _cost(self) -> list[tuple[str, str]]:
        """Returns the rows about the hours and the cost of the run; none if the user has given no price.

        Without a described network, a node without GPUs is this host, with its present number of ranks.
        """
        price, outlook = self.assumed.price, self._outlook()
        if price is None:
            return []
        if self.assumed.fabric is None and not self.on_gpu:
            outlook = replace(outlook, fabric=replace(outlook.fabric, ranks_per_node=self.ranks))
        device = "GPU" if self.on_gpu else "rank"
        batch = self.config.global_batch
        return cost_rows(outlook, steps=self.config.steps, global_batch=batch, price=price, device=device)

    def _outlook(self) -> Outlook:
        half = vector_dtype(self.config.objective, self.config.engine.precision) == torch.bfloat16
        memory, assumed = self.memory, self.assumed
        work = Workload.of(
            self.config,
            self.split.rows,
            parameters=memory.parameters,
            trained=memory.trained,
            patches=memory.patches,
            half=half,
        )
        fabric = assumed.fabric_for(on_gpu=self.on_gpu)
        return Outlook(
            work, memory.state, self.ranks, self.config.checkpoint.every_steps, fabric, assumed, self._speed(work)
        )

    def _speed(self, work: Workload) -> Speed | None:
        """Returns the speed of a single rank.

        It follows from the time of a step if the user has measured one, and otherwise from the type of this host's GPU.
        The result is None if there is neither a measured step nor a GPU of a known type.
        """
        half = self.config.engine.precision != "fp32"
        name = torch.cuda.get_device_name() if self.on_gpu and torch.cuda.is_available() else ""
        flops = device_flops(name, half=half)
        if self.assumed.step:
            return Speed.of_step(self.assumed.step.of_rows(work.rows), work, flops or LOSS_FLOPS_PER_S[self.on_gpu])
        return None if flops is None else Speed(work.rows * self.memory.row_flops / flops, flops, 0.0)

    def _data(self) -> list[tuple[str, str]]:
        if tars := self.config.data.webdataset:
            return [
                (
                    "data",
                    f"tars at {masked_url(tars.url)}; an epoch has {counted(tars.samples, 'sample')}, as stated",
                ),
                (
                    "shuffle",
                    f"{counted(tars.shuffle_buffer, 'sample')} together in each loader process, without the cache",
                ),
                ("length", self._length(tars.samples)),
            ]
        if not self.manifests:
            urls = " and ".join(dataset.url for dataset in self.config.data.datasets)
            return [("data", f"no dataset can be read at {urls} from here")]
        samples = sum(used_samples(self.manifests, self.filters))
        window = min(self.config.data.window_samples(self.config.global_batch), samples)
        return [
            *(("data", _described(manifest)) for manifest in self.manifests),
            *(("filter", f"leaves out {each.describe()}") for each in self.filters if each),
            *self._mixture(),
            ("each rank", f"about {counted(samples // self.ranks, 'sample')} in an epoch"),
            ("shuffle", f"{counted(window, 'sample')} together{', the whole data' if window == samples else ''}"),
            *self._windows(samples, window),
            ("length", self._length(samples)),
        ]

    def _length(self, samples: int) -> str:
        """Returns the length of the run as a text. `samples` is the number of samples of an epoch."""
        # The last batch of an epoch is smaller, or left out.
        batches = samples / self.config.global_batch
        epochs = self.config.steps / max(1, math.floor(batches) if self.config.data.drop_last else math.ceil(batches))
        return f"{counted(self.config.steps, 'step')}, {epochs:.1f} epochs" if epochs else "0 steps, no training"

    def _windows(self, samples: int, window: int) -> list[tuple[str, str]]:
        """Returns the rows about the cache, which keeps two windows of the shuffle. Local datasets have no cache."""
        if all(open_store(source.url).is_near for source in self.config.data.datasets):
            return []
        two_windows = 2 * sum(manifest.total_bytes for manifest in self.manifests) * window / samples
        data = self.config.data
        if not data.cache_gb:
            return [("cache", "none, so each epoch reads the data from the store again")]
        return [
            ("cache", f"at most {data.cache_gb:g} GB on each node, in {data.cache}"),
            ("", f"two windows have {size(two_windows)}; each node keeps its share of them"),
        ]

    def _mixture(self) -> list[tuple[str, str]]:
        if len(self.manifests) == 1:
            return []
        pairs = zip(self.config.data.datasets, used_samples(self.manifests, self.filters), strict=True)
        weights = [dataset.weight or samples for dataset, samples in pairs]
        shares = " + ".join(f"{weight / sum(weights):.1%}" for weight in weights)
        return [("mixture", f"{shares} of every batch")]


def _under(name: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    """Returns a row of the plan for each line. The first row has the name `name`, and the others have an empty name."""
    return [("" if number else name, line) for number, line in enumerate(lines)]


def _described(manifest: Manifest) -> str:
    stock = f"{counted(manifest.samples, 'sample')} in {counted(len(manifest.shards), 'shard')}"
    return f"{stock}, {size(manifest.total_bytes)}"


def _datasets(config: Config) -> tuple[tuple[Manifest, ...], Filters]:
    """Returns the manifests and the filters of the datasets; nothing if one of them cannot be read."""
    try:
        return tuple(read_manifest(source.url) for source in config.data.datasets), open_filters(config.data)
    except ShardsError:
        return (), ()
