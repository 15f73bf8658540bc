"""What a run will do, before it does it: the text of `--dry-run`."""

from dataclasses import dataclass

import torch
import yaml
from emocap_kernels import Mining, choose_backend
from emocap_kernels.errors import NotSupportedError
from emocap_shards.errors import ShardsError
from emocap_shards.manifest import Manifest, read_manifest

from emocap_pretrain.config.batch_split import micro_batch
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.memory import MemoryEstimate, estimate


@dataclass(frozen=True, slots=True)
class Plan:
    """The run's split over ranks, its memory, its data; `manifest` is None where no dataset can be read."""

    config: Config
    ranks: int
    on_gpu: bool
    micro_batch: int
    memory: MemoryEstimate
    manifest: Manifest | None

    @classmethod
    def of(cls, config: Config, ranks: int, *, on_gpu: bool) -> "Plan":
        """Plan a run.

        Raises:
            ConfigError: If the batch does not split over the ranks.
        """
        rows = micro_batch(config, ranks)
        return cls(config, ranks, on_gpu, rows, estimate(config, ranks), _manifest(config))

    def text(self) -> str:
        resolved = yaml.safe_dump(self.config.stored(), sort_keys=False, allow_unicode=True)
        rows = (*self._split(), self._loss(), *self.memory.lines(), *self._data())
        lines = [f"{name:<16}{value}" for name, value in rows]
        return f"{resolved}\n# plan\n" + "\n".join(lines)

    def _split(self) -> list[tuple[str, str]]:
        device = "GPU" if self.on_gpu else "CPU process"
        return [
            ("devices", f"{self.ranks} ranks, one {device} each"),
            ("batch", f"global {self.config.global_batch} = {self.ranks} ranks x {self.micro_batch}"),
        ]

    def _loss(self) -> tuple[str, str]:
        if self.on_gpu and not torch.cuda.is_available():
            return ("global loss", f"{self.config.objective.backend}, decided on the GPUs")
        vectors = torch.empty(0, self.config.model.embedding, device="cuda" if self.on_gpu else "cpu")
        rule = self.config.objective.mining
        mining = Mining(**rule.model_dump()) if rule else None
        try:
            choice = choose_backend(vectors, vectors, mining=mining, backend=self.config.objective.backend)
        except NotSupportedError as error:
            raise ConfigError(f"objective.backend: {error}") from None
        return ("global loss", f"{choice.backend}: {choice.reason}")

    def _data(self) -> list[tuple[str, str]]:
        if self.manifest is None:
            return [("data", f"no dataset can be read at {self.config.data.url} from here")]
        samples = self.manifest.samples
        epochs = self.config.steps * self.config.global_batch / samples
        return [
            (
                "data",
                f"{samples:,} samples in {len(self.manifest.shards)} shards, {self.manifest.total_bytes / 1e6:,.0f} MB",
            ),
            ("each rank", f"about {samples // self.ranks:,} samples an epoch, every shard by ranges"),
            ("length", f"{self.config.steps:,} steps, {epochs:.1f} epochs"),
        ]


def _manifest(config: Config) -> Manifest | None:
    try:
        return read_manifest(config.data.url)
    except ShardsError:
        return None
