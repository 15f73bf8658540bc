# A row of a source (`row_source`, `row`, `sources/`) becomes a sample in a worker process (`workers`, `prepare`). The
# main process decides in the order of the rows whether it is written (`row_ledger`), and writes it into a tar
# (`shards`, `tar`). Finished shards are uploaded and recorded (`journal`). `packing.pack` connects all of this.
