"""The server from which tests fork ranks: it imports what they need once.

A process of pytest has one such server, and the first test that needs a rank starts it. All tests therefore ask for the
same imports: a rank that has to import DeepSpeed itself needs many seconds for it.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from subprocess import CompletedProcess
from typing import Any

# DeepSpeed imports `compile_fx` late, for seconds, when it makes an optimizer; MLflow opens its database with
# `sqlalchemy_store`; rank 0 alone imports what tracks.
EVERYTHING = [
    "deepspeed",
    "emocap_pretrain.training.loop",
    "emocap_pretrain.tracking.mlflow_tracker",
    "emocap_pretrain.tracking.pictures",
    "matplotlib.figure",
    "mlflow.store.tracking.sqlalchemy_store",
    "torch._inductor.compile_fx",
]
KERNELS = ["torch", "torch.distributed", "emocap_kernels"]


def server() -> ForkServerContext:
    """Returns the context whose processes are forked from the server. The server reads the environment once."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    context = multiprocessing.get_context("forkserver")
    # In Triton's interpreter nothing but the kernels is tested.
    context.set_forkserver_preload(KERNELS if os.environ.get("TRITON_INTERPRET") == "1" else EVERYTHING)
    return context


def run(command: Sequence[str], *, env: Mapping[str, str], check: bool) -> "CompletedProcess[Any]":
    """Runs `python -m MODULE WORDS` in a fork of the server. Takes the arguments of `subprocess.run`.

    The process is one of its own, as the command would be, but it has all imports already.
    """
    _, option, module, *words = command
    assert option == "-m", command
    process = server().Process(target=_main, args=(module, words, dict(env)))
    process.start()
    process.join()
    return CompletedProcess(command, process.exitcode or 0)


def _main(module: str, words: Sequence[str], env: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__")
