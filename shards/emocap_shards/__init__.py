# The package exports no names of its own: import from its modules. `stream.Stream` reads a dataset in steps;
# `writer.write_shards` and `writing.packing.pack` write one; `inspecting.summary.summarise` and
# `inspecting.verify.verify` examine one. docs/architecture.md lists the modules from top to bottom.
