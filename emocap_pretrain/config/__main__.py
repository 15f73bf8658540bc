"""Prints the JSON schema of a config: `python -m emocap_pretrain.config --schema`. Editors check configs with it."""

import json
import sys

from emocap_pretrain.config.schema import Config

USAGE = "usage: python -m emocap_pretrain.config --schema > emocap.schema.json"


def main(arguments: list[str]) -> int:
    """Prints the schema, or the usage if the arguments are not `--schema`, and returns the exit code.

    The schema contains each setting under its key in a YAML file, with the description of its field.
    """
    if arguments != ["--schema"]:
        sys.stderr.write(f"{USAGE}\n")
        return 0 if arguments in (["-h"], ["--help"]) else 2
    sys.stdout.write(json.dumps(Config.model_json_schema(by_alias=True), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
