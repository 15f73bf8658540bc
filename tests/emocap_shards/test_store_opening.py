import pytest
from emocap_shards.errors import StoreError
from emocap_shards.mask import masked
from emocap_shards.store import RetryConfig, TransferConfig, open_store
from emocap_shards.store.driver import Driver
from emocap_shards.store.objects import ObjectStore


@pytest.mark.parametrize(("protocol", "package"), [("gs", "gcsfs"), ("az", "adlfs"), ("abfs", "adlfs")])
def test_a_missing_driver_says_what_to_install(protocol, package):
    with pytest.raises(StoreError, match=rf"driver for {protocol}:// is not installed; pip install {package}\.$"):
        open_store(f"{protocol}://bucket/x")


@pytest.mark.parametrize("url", ["s3://user:canary@bucket/x", "s3://bucket/x?token=canary"])
def test_credentials_in_an_s3_url_are_refused_without_repeating_them(url):
    with pytest.raises(StoreError, match="leave them to the environment") as caught:
        open_store(url)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://Bad_Bucket!/x", "s3a://b"])
def test_what_names_no_bucket_is_refused_at_birth(url):
    with pytest.raises(StoreError, match=r"names no bucket; write it like s3://bucket/folder"):
        open_store(url)


@pytest.mark.parametrize(
    "text",
    [
        "GET https://user:canary@host/x failed",
        "Cannot connect to 'https://host/x?X-Amz-Signature=canary&a=b'",
        'url="http://u@h/?sv=1&sig=canary"',
        "aws_secret_access_key=canary",
        "{'password': 'canary'}",
    ],
)
def test_no_text_keeps_its_secrets(text):
    assert "canary" not in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "no such key: 'a/b.tar'",
        "s3://bucket/folder/x.tar",
        "read 3 of 5 bytes (206)",
        "NoCredentialsError: Unable to locate credentials",
        "botocore.exceptions.TokenRetrievalError: Error when retrieving token from sso",
        "ExpiredTokenException: The provided token has expired",
    ],
)
def test_texts_without_secrets_stay_as_they_are(text):
    assert masked(text) == text


def test_wrong_limits_are_refused_at_birth(monkeypatch):
    with pytest.raises(StoreError, match=r"deadline_s=-1 is too small"):
        RetryConfig(deadline_s=-1)
    with pytest.raises(StoreError, match=r"in_flight=0 is too small; give 1 or more"):
        TransferConfig(in_flight=0)
    monkeypatch.setenv("EMOCAP_STORE_DEADLINE_S", "soon")
    with pytest.raises(StoreError, match=r"EMOCAP_STORE_DEADLINE_S='soon' is not a number"):
        open_store("memory://x")


def test_the_deadline_comes_from_the_environment(monkeypatch):
    assert open_store("memory://x").patience.deadline_s == 900
    monkeypatch.setenv("EMOCAP_STORE_DEADLINE_S", "7.5")
    assert open_store("memory://x").patience.deadline_s == 7.5
    assert open_store("memory://x", patience=RetryConfig()).patience.deadline_s == 900


def test_a_store_with_any_driver_of_fsspec_works(tmp_path):
    store = ObjectStore(f"local://{tmp_path}/root", traffic=TransferConfig(part_bytes=1000))
    (tmp_path / "root").mkdir()
    data = bytes(range(256)) * 40
    store.put("x", data)
    assert store.read("x") == data
    assert store.read_ranges([("x", 5, 5000), ("x", 10_000, 20_000)]) == [data[5:5000], data[10_000:]]
    store.get_file("x", tmp_path / "back")
    store.put_file("y", tmp_path / "back")
    assert store.read("y") == data
    assert [entry.path for entry in store.list()] == ["x", "y"]
    store.delete("x")
    assert not store.exists("x")
    with pytest.raises(StoreError, match="cannot write on the condition that an object is"):
        store.put_if_match("y", b"1", "v")
    assert not store.honours_conditions()


def test_an_object_of_a_driver_that_grows_between_two_requests_is_read_whole(tmp_path, monkeypatch):
    store = ObjectStore(f"local://{tmp_path}", patience=RetryConfig(first_wait_s=0.01))
    store.put("x", b"old")
    head = Driver.head

    async def grown(self, path):
        facts = await head(self, path)
        (tmp_path / "x").write_bytes(b"longer")
        return facts

    monkeypatch.setattr(Driver, "head", grown)
    assert store.read("x") == b"longer"
