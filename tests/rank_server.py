"""The server from which tests fork ranks: it imports what they need once.

A process of pytest has one such server, and the first test that needs a rank starts it. All tests therefore ask for the
same imports: a rank that has to import DeepSpeed itself needs many seconds for it.
"""

import multiprocessing
import os
from multiprocessing.context import ForkServerContext

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
