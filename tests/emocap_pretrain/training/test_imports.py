import subprocess
import sys

PROGRAM = """
import sys
import emocap_pretrain.training.loop
names = ("mlflow", "matplotlib", "pandas", "deepspeed", "sklearn", "torchmetrics")
print([name for name in names if name in sys.modules])
"""


def test_other_ranks_do_not_import_what_only_rank_0_needs() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
