"""`python -m emocap_pretrain.config --schema`: the JSON schema that editors complete and check recipes with."""

import json
import sys

from emocap_pretrain.config.schema import Config

USAGE = "usage: python -m emocap_pretrain.config --schema > emocap.schema.json"


def main(arguments: list[str]) -> int:
    if arguments != ["--schema"]:
        sys.stderr.write(f"{USAGE}\n")
        return 0 if arguments in (["-h"], ["--help"]) else 2
    sys.stdout.write(json.dumps(Config.model_json_schema(by_alias=True), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
