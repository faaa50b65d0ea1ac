"""Addresses of stores: what they name, and no secret in them."""

from __future__ import annotations

import pytest

from pipeline.errors import StoreRefused, WrongUse
from pipeline.storage.address import Address
from pipeline.storage.credentials import aws_profile

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("s3://shop", "s3://shop"),
        ("S3://shop/", "s3://shop"),
        ("s3://shop/photos/2026/", "s3://shop/photos/2026"),
        ("gs://my-shop.example/ü b%20c", "gs://my-shop.example/ü b%20c"),
        ("az://container/a", "az://container/a"),
        ("https://files.example:8443/a/b", "https://files.example:8443/a/b"),
    ],
)
def test_an_address_is_named_in_one_way(text: str, name: str) -> None:
    assert str(Address.parse(text)) == name


@pytest.mark.parametrize(
    "text",
    [
        f"s3://me:{SECRET}@shop/photos",
        f"https://me:{SECRET}@files.example/a",
        f"https://files.example/a?X-Amz-Signature={SECRET}",
        f"https://files.example/a#{SECRET}",
    ],
)
def test_a_credential_in_an_address_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(WrongUse, match="credentials come from the environment") as refused:
        Address.parse(text)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "s3://",
        "s3:///photos",
        "s3://a b/c",
        "s3://shop/a//b",
        "s3://shop/../x",
        "ftp://a/b",
        "s3:x",
    ],
)
def test_an_address_that_can_never_work_is_refused(text: str) -> None:
    with pytest.raises(WrongUse):
        Address.parse(text)


@pytest.fixture
def profiles(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config").write_text(
        "[default]\nregion = eu-west-1\n[profile shop]\nregion=eu-central-1\n"
        "endpoint_url = https://s3.example\n[profile sso]\nsso_session = x\n"
    )
    (tmp_path / "credentials").write_text(
        f"[shop]\naws_access_key_id = AK\naws_secret_access_key = {SECRET}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", f"{tmp_path}/config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", f"{tmp_path}/credentials")


@pytest.mark.usefixtures("profiles")
def test_a_profile_gives_its_key_its_region_and_its_endpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert aws_profile() == {"region": "eu-west-1"}
    monkeypatch.setenv("AWS_PROFILE", "shop")
    assert aws_profile() == {
        "region": "eu-central-1",
        "endpoint": "https://s3.example",
        "access_key_id": "AK",
        "secret_access_key": SECRET,
    }
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OTHER")
    assert "secret_access_key" not in aws_profile()


@pytest.mark.usefixtures("profiles")
@pytest.mark.parametrize(("name", "reason"), [("nobody", "does not exist"), ("sso", "no access")])
def test_a_profile_that_cannot_be_used_is_told(
    monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setenv("AWS_PROFILE", name)
    with pytest.raises(StoreRefused, match=reason):
        aws_profile()


def test_a_broken_profile_is_told_without_its_secret(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text(f"aws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", f"{tmp_path}/credentials")
    with pytest.raises(StoreRefused) as refused:
        aws_profile()
    assert SECRET not in str(refused.value)
