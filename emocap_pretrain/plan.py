"""What a run will do, before it does it: the text of `--dry-run`."""

from dataclasses import dataclass

import torch
import yaml
from emocap_kernels import Mining, choose_backend, choose_region_backend
from emocap_kernels.errors import NotSupportedError
from emocap_shards.errors import ShardsError
from emocap_shards.manifest import Manifest, read_manifest

from emocap_pretrain.config.batch_split import micro_batch
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.memory import MemoryEstimate, estimate
from emocap_pretrain.objective import vector_dtype


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
        rows = (*self._split(), *self._losses(), *self.memory.lines(), *self._data())
        lines = [f"{name:<16}{value}" for name, value in rows]
        return f"{resolved}\n# plan\n" + "\n".join(lines)

    def _split(self) -> list[tuple[str, str]]:
        device = "GPU" if self.on_gpu else "CPU process"
        return [
            ("devices", f"{self.ranks} ranks, one {device} each"),
            ("batch", f"global {self.config.global_batch} = {self.ranks} ranks x {self.micro_batch}"),
        ]

    def _losses(self) -> list[tuple[str, str]]:
        settings = self.config.objective
        if self.on_gpu and not torch.cuda.is_available():
            return [(name, f"{settings.backend}, decided on the GPUs") for name in ("global loss", "local loss")]
        width, dtype = self.config.model.embedding, vector_dtype(self.config)
        vectors = torch.empty(0, width, dtype=dtype, device="cuda" if self.on_gpu else "cpu")
        rule, local_rule = settings.mining, settings.local_mining
        mining = Mining(**rule.model_dump()) if rule else None
        local_mining = Mining(guide="text", **local_rule.model_dump()) if local_rule else None
        try:
            whole = choose_backend(vectors, vectors, mining=mining, backend=settings.backend)
            local = choose_region_backend(
                vectors[:, None], vectors, scope=settings.scope, mining=local_mining, backend=settings.backend
            )
        except NotSupportedError as error:
            raise ConfigError(f"objective.backend: {error}") from None
        return [
            ("global loss", f"{whole.backend}: {whole.reason}"),
            ("local loss", f"{local.backend}: {local.reason}"),
        ]

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
