import subprocess
import sys

PROGRAM = """
import sys
from emocap_pretrain.model import torchvision_ops
import timm
finders = [each for each in sys.meta_path if type(each).__module__ == torchvision_ops.__name__]
torchvision_ops.install()
again = [each for each in sys.meta_path if type(each).__module__ == torchvision_ops.__name__]
print(len(finders), len(again))
"""


def output(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_timm_can_be_imported_afterwards_and_the_finder_is_installed_once():
    assert output(PROGRAM) == ["1", "1"]


def test_nothing_is_declared_with_a_cuda_build_of_torch():
    # Whatever build runs here, torch now says that it has CUDA, and nobody imports torchvision.
    program = """
import torch
torch.version.cuda = "13.0"
from emocap_pretrain.model.torchvision_ops import _declare
assert not _declare()
print(hasattr(torch.ops.torchvision, "nms"))
"""
    assert output(program) == ["False"]
