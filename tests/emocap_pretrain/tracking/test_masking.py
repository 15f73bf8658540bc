import pytest

from emocap_pretrain.tracking.masking import masked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://anna:sesame@tracker:5000/api", "http://***@tracker:5000/api"),
        ("http://anna:ses@me@tracker", "http://***@tracker"),
        ("API request to https://token@host/x failed: https://token@host/x", "API request to https://***@host/x failed: https://***@host/x"),
        ("postgresql://host/db?user=anna&password=sesame&ssl=1", "postgresql://host/db?user=anna&password=***&ssl=1"),
        ("s3://bucket/x?access_key=AK&secret=SK", "s3://bucket/x?access_key=***&secret=***"),
    ],
)  # fmt: skip
def test_users_passwords_and_secret_parameters_are_hidden(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown


@pytest.mark.parametrize(
    "text", ["", "sqlite:///runs/mlflow.db", "s3://bucket/a@b", "write to anna@example.org", "http://host/a?page=2"]
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert masked(text) == text
