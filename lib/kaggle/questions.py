"""Ask Kaggle about a kernel or a dataset with the library of the kaggle client, and print the answer as JSON.

A program: `questions.py kernel OWNER/SLUG [all|newest|N]`, or `questions.py dataset OWNER/SLUG`. `kernel.py` runs it
with a time limit. The client's own commands print neither a kernel's newest version nor an HTTP status.

Guarantees: it prints `null` for an object that is missing or that the key may not read, which Kaggle does not
distinguish; any other failure ends with status 1 and the client's message. Cannot: list the versions of a kernel that
were deleted one by one, or the files of a dataset after the first 200.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from kaggle import api  # type: ignore[attr-defined]  # mypy finds tests/kaggle
from kaggle.api.kaggle_api_extended import format_http_error, print_auth_help
from kagglesdk.datasets.types import dataset_api_service as datasets
from kagglesdk.kernels.types import kernels_api_service as kernels

ABSENT = (403, 404)
LOOKED_AT = 10  # newest versions of a kernel whose states are asked: one request each


def describe_kernel(client: Any, owner: str, slug: str, version: str = "all") -> dict[str, Any]:  # noqa: ANN401  untyped
    """Return a kernel's privacy, its newest version, and {version: (state, reason)} of one or the newest versions."""
    ask = client.kernels.kernels_api_client
    request = kernels.ApiGetKernelRequest()
    request.user_name, request.kernel_slug = owner, slug
    about = ask.get_kernel(request).metadata
    newest = about.current_version_number
    chosen: Iterable[int]
    if version == "all":
        chosen = range(newest, max(0, newest - LOOKED_AT), -1)
    else:
        chosen = [newest if version == "newest" else int(version)]
    return {
        "is_private": about.is_private,
        "newest": newest,
        "states": {number: found for number in chosen if (found := _state(ask, owner, slug, number))},
    }


def _state(ask: Any, owner: str, slug: str, version: int) -> tuple[str, str] | None:  # noqa: ANN401
    """Return the state of a version and its reason; None if there is no such version, or it was never run."""
    request = kernels.ApiGetKernelSessionStatusRequest()
    request.user_name, request.kernel_slug = owner, slug
    request.version_label = f"v{version}"  # a bare number is not found
    try:
        answer = ask.get_kernel_session_status(request)
    except OSError as error:
        if _status(error) in ABSENT:
            return None
        raise
    return answer.status.name.replace("_", "").lower(), (answer.failure_message or "").strip()


def describe_dataset(client: Any, owner: str, slug: str) -> dict[str, Any]:  # noqa: ANN401
    """Return a dataset's privacy, the state of its newest version, and its files."""
    ask = client.datasets.dataset_api_client

    def about(request: Any) -> Any:  # noqa: ANN401
        request.owner_slug, request.dataset_slug = owner, slug
        return request

    listing = about(datasets.ApiListDatasetFilesRequest())
    listing.page_size = 200
    return {
        "is_private": ask.get_dataset_metadata(about(datasets.ApiGetDatasetMetadataRequest())).info.is_private,
        "state": ask.get_dataset_status(about(datasets.ApiGetDatasetStatusRequest())).status.name.lower(),
        "files": [file.name for file in ask.list_dataset_files(listing).files or []],
    }


def _status(error: OSError) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def main(kind: str, name: str, *more: str) -> int:
    """Print the answer to a question and return the exit status."""
    describe = {"kernel": describe_kernel, "dataset": describe_dataset}[kind]
    try:
        with api.build_kaggle_client() as client:
            answer = describe(client, *name.split("/"), *more)
    except (OSError, ValueError, AttributeError) as error:  # the HTTP library's, or of an incomplete answer
        status = _status(error) if isinstance(error, OSError) else None
        if status == 401:  # noqa: PLR2004  unauthorized: no key, or one that Kaggle rejects
            print_auth_help()
        elif status in ABSENT:
            print("null")
            return 0
        else:
            print(format_http_error(error) if status else error, file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
