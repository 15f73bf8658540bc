from hypothesis import settings

# A busy machine is slow, which is no failure; pytest-timeout ends what hangs.
settings.register_profile("shards", deadline=None)
settings.load_profile("shards")
