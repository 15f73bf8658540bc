"""One rank under the DeepSpeed launcher: `deepspeed --num_nodes 4 launch/pretrain.py [cfg.yaml] [key=value ...]`.

A shim: the launcher adds `--local_rank=N`, which is in the environment anyway; the rest is `emocap_pretrain.run`.
"""

import sys

from emocap_pretrain.run import main

if __name__ == "__main__":  # Loader processes import this file again; they are no ranks.
    sys.argv[1:] = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    main()
