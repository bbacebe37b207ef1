"""Puts an exported folder on a hub, by the hub's own client. Nothing is sent before somebody has said so."""

from __future__ import annotations

from pathlib import Path

from aurify.errors import UserError


def list_pushed_files(folder: Path) -> list[Path]:
    """What would be pushed. Only a finished export has a model card."""
    if not (folder / "README.md").is_file():
        raise UserError(f"{folder} is no exported folder: it has no README.md; `aurify export folder MODEL` makes one")
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def describe_push(folder: Path, repo: str, public: bool) -> list[str]:
    from huggingface_hub import constants

    check_hub_name(repo)
    files = list_pushed_files(folder)
    total = sum(path.stat().st_size for path in files)
    state = "public" if public else "private"
    lines = [f"{constants.ENDPOINT}/{repo}, {state} if it is new: {len(files)} files, {total:,} bytes"]
    return [*lines, *(f"  {path.relative_to(folder).as_posix():40} {path.stat().st_size:>15,}" for path in files)]


def push_export(folder: Path, repo: str, public: bool) -> str:
    """The address of the commit."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_hub_name(repo)
    names = [path.relative_to(folder).as_posix() for path in list_pushed_files(folder)]
    api = HfApi()
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=names, commit_message="Exported by Aurify"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{repo} was not pushed: {reason}. `hf auth login` logs in; {folder} is as it was") from error
    return str(commit.commit_url)


def check_hub_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UserError(f"{repo!r} is no name of a hub: write OWNER/NAME") from None
    if "/" not in repo:
        raise UserError(f"{repo!r} names no owner: write OWNER/{repo}")
