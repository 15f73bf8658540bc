"""Starts a rank under the DeepSpeed launcher: `deepspeed --num_nodes 4 launch/pretrain.py [cfg.yaml] [key=value ...]`.

The script does the same as `python -m emocap_pretrain.run`, but drops the argument `--local_rank=N` that the launcher
adds. The rank uses the environment variable LOCAL_RANK instead, which the launcher also sets. All other launchers start
the module `emocap_pretrain.run` itself (docs/clusters.md).
"""

import sys

from emocap_pretrain.run import main

if __name__ == "__main__":  # Loader processes import this file too, but are not ranks.
    sys.argv[1:] = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    main()
