"""Imported before litdata, which otherwise asks a package registry for its newest version."""

import os

os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"
