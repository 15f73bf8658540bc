"""Defines the parent of a warm start: the checkpoint of another run whose weights a new run begins with.

A warm start on other data is a new run with a folder and an MLflow run of its own. It records its parent in `run.json`,
in its report and in MLflow, so that a reader finds the data and the settings with which its weights were made.
"""

from dataclasses import dataclass

from emocap_pretrain.run_folder.results import Count


@dataclass(frozen=True, slots=True)
class Parent:
    """Names a checkpoint of another run, from which a run has taken its first weights.

    Args:
        url: Folder of the other run, without secrets.
        step: Step of the checkpoint.
        run_id: MLflow's id of the other run; empty if the checkpoint has none.
        digest: `Checkpoint.digest`, the SHA-256 of the checkpoint's manifest.
    """

    url: str
    step: Count
    run_id: str = ""
    digest: str = ""

    def text(self) -> str:
        """Returns the parent as tables show it, such as `step 1,200 of s3://bucket/runs/faces`."""
        return f"step {self.step:,} of {self.url}"

    def tags(self) -> dict[str, str]:
        """Returns the parent as tags of an MLflow run."""
        return {
            "parent.url": self.url,
            "parent.step": str(self.step),
            "parent.run_id": self.run_id,
            "parent.manifest_sha256": self.digest,
        }
