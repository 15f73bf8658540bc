import subprocess
import sys

PROGRAM = """
import sys
import emocap_pretrain.training.loop
print([name for name in ("mlflow", "matplotlib", "pandas", "deepspeed") if name in sys.modules])
"""


def test_a_rank_that_tracks_nothing_does_not_import_what_rank_0_needs() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
