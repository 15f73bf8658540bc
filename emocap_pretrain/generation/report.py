"""Puts the scores of a captioner into the form of other results, so that one report shows them beside these."""

from emocap_pretrain.generation.scoring import FLOORS, CaptionScores
from emocap_pretrain.run_folder.results import Baseline, Score, TaskResult

TASK = "generation"
_KNOWN = "the person is in the training data"


def task_result(found: CaptionScores, url: str) -> TaskResult:
    """Returns the score of each metric, and its difference to each floor, with their intervals.

    The baseline of a metric is the caption of the nearest training image.

    Args:
        found: The scores.
        url: Address of the scored dataset without secrets.
    """
    scores: list[Score] = []
    for metric in found.metrics:
        nearest = Baseline("nearest image", metric.floors["nearest_image"])
        score = Score(metric.name, f"captions, {metric.title}", metric.value, nearest, is_share=False)
        scores.append(score.within(metric.interval))
        for floor, title in FLOORS.items():
            above = Score(
                f"{metric.name}_above_{floor}",
                f"captions, {metric.title} minus that of {title}",
                metric.differences[floor],
                is_share=False,
            )
            scores.append(above.within(metric.intervals[floor]))
    left_out = {**({_KNOWN: found.known} if found.known else {}), **found.left_out}
    return TaskResult(
        TASK,
        found.images,
        tuple(scores),
        url=url,
        left_out=tuple(left_out.items()),
        outcomes=(found.outcomes,),
        scored_samples=found.samples,
    )
