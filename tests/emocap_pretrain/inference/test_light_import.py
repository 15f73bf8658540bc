"""Tests that `import emocap_pretrain` is fast, because each start of a command and of a rank executes it."""

import subprocess
import sys

import emocap_pretrain

PROGRAM = """
import sys, time
before = set(sys.modules)
began = time.process_time()
import emocap_pretrain
spent = time.process_time() - began
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(spent < 0.3, sorted(new & {"torch", "timm", "transformers", "torchvision", "numpy", "PIL", "pydantic", "mlflow"}))
"""


def test_the_import_takes_less_than_a_third_of_a_second_and_loads_no_library() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "True []"


def test_the_public_surface_is_one_function() -> None:
    assert emocap_pretrain.__all__ == ["load"]
