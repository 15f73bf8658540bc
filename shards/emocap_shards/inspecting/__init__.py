# Two independent examinations of a dataset. `summary.summarise` reads some samples (`look`), counts what they contain
# (`annotations`, `counters`, `faces`), and `page` shows the result. `verify.verify` reads every byte (`shard_pool`,
# `shard_check`, `tape`) and reports damage (`faults`). docs/looking-at-data.md describes both.
