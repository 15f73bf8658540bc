"""Keeps litdata from asking a package registry for its newest version; imported before it."""

import os

os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"
