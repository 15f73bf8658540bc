"""Runs `emocap` as `python -m emocap_pretrain.cli`."""

from emocap_pretrain.cli.app import main

main()
