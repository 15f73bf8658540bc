"""Starts a rank under the DeepSpeed launcher: `deepspeed --num_nodes 4 launch/pretrain.py [cfg.yaml] [key=value ...]`.

It runs `emocap pretrain` (`python -m emocap_pretrain.run`) without the argument `--local_rank=N` that the launcher
adds. The launcher also sets the environment variable LOCAL_RANK, which is used instead. All other launchers start the
module `emocap_pretrain.run` itself (docs/clusters.md).
"""

import sys

from emocap_pretrain.run import main

if __name__ == "__main__":  # Loader processes import this file too, but are not ranks.
    sys.argv[1:] = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    main()
