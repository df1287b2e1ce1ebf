import pytest

from toprovar_batch.worker.credentials import redact, redacted, without_credentials
from toprovar_batch.worker.errors import RunFailedError
from toprovar_batch.worker.worker_errors import one_line

SECRET = "S3cr3t%2Fvalue"
ADDRESSES = [
    f"https://user:{SECRET}@host/prompts.txt",
    f"https://{SECRET}@host/prompts.txt",
    f"https://user:a\"'<`{SECRET}@host/prompts.txt",
    f"https://user:{SECRET}?#@{SECRET}@host/prompts.txt",
    f"s3://key:{SECRET}@bucket/prompts.txt",
    f"ftp://user:{SECRET}@host/folder/",
    f"https://bucket/p.txt?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
    f"https://host/p.txt?sv=2022&se=2026-01-01&sig={SECRET}",
    f"https://host/p.txt?access_token={SECRET}",
    f"https://host/p.txt?whatever={SECRET}",
    f"https://host/p.txt?{SECRET}",
    f"https://host/p.txt#{SECRET}",
]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("text", ["{}", "cannot read '{}': refused", "({}), again: {}; and more"])
def test_no_text_shows_a_secret(address, text):
    sentence = text.format(address, address)
    hidden = redact(sentence)
    assert SECRET not in hidden
    assert hidden.startswith(text.partition("{")[0])
    assert hidden.endswith(text.rpartition("}")[2])
    assert redact(hidden) == hidden
    assert SECRET not in without_credentials(address)
    assert SECRET not in str(RunFailedError(sentence))
    assert SECRET not in one_line(OSError(sentence))
    assert SECRET not in str(redacted({"a": [sentence, {sentence: 1}]}))


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/prompts-??.parquet",
        '{"a":"http://host","b":"me@home"}',
        "'http://host:80','me@home'",
        "http://[::1]:8080/a@b",
        "https://host:8080/a@b/c.txt?download=true&versionId=3",
        "abfs://container@account.dfs.core.windows.net/out",
        "a@b = c? #1",
        "/local/a=b@c",
    ],
)
def test_what_holds_no_secret_stays(text):
    assert redact(text) == text


def test_a_request_without_its_host_is_masked():
    assert redact("max retries exceeded with url: /f?a=1&sig=abc (closed)") == (
        "max retries exceeded with url: /f?a=1&sig=*** (closed)"
    )


def test_a_renewed_signature_is_the_same_file_and_another_query_is_not():
    address = "https://user:{0}@host/f.pth?id={1}&X-Amz-Date={0}&X-Amz-Signature={0}"
    first = without_credentials(address.format("one", "a"))
    assert first == without_credentials(address.format("two", "a"))
    assert first != without_credentials(address.format("one", "b"))
    assert without_credentials("https://host/f.pth") == "https://host/f.pth"
