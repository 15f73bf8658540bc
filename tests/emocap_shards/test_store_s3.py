from emocap_shards.store import open_store


def test_it_round_trips(s3):
    store = open_store(s3)
    store.put("a/b", b"x" * 100000)
    assert store.read("a/b") == b"x" * 100000


def test_it_round_trips_broken(s3, faulty_s3):
    faulty_s3.inject("503", count=1)
    store = open_store(s3)
    store.put("a/b", b"x" * 100000)
    assert store.read("a/b") == b"x" * 100000
    assert faulty_s3.counts["503"] == 1
