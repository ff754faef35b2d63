"""Files that are written all together or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from revbifpn.votes.table import VoteError

Content: TypeAlias = "pd.DataFrame | Mapping[str, Any]"


def check_targets(targets: Sequence[Path], sources: Sequence[Path], overwrite: bool) -> None:
    """Check, before anything takes its time, that files can be written and nothing is lost.

    Args:
        targets: files to write.
        sources: files that are read, which none of them may replace.
        overwrite: whether targets may exist.

    Raises:
        VoteError: naming the file and what to do.
    """
    places = [target.resolve() for target in targets]
    for target, place in zip(targets, places, strict=True):
        if places.count(place) > 1:
            raise VoteError(f"{target} is named for two outputs: give each a file of its own")
        if place in [source.resolve() for source in sources]:
            raise VoteError(f"{target} is an input: choose another name for the output")
        folder = next(folder for folder in place.parents if folder.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise VoteError(f"{target} cannot be written: {folder} is no folder, or nothing may be written there")
        if target.is_dir():
            raise VoteError(f"{target} is a folder: name a file in it")
        if target.exists() and not overwrite:
            raise VoteError(f"{target} exists: choose another name, or replace it with --overwrite")


def renamed(content: Any, names: Mapping[str, str]) -> Any:
    """A table whose columns, or whose index, have the names that its user has for them; what is no table stays as it is.

    Raises:
        VoteError: if two columns would have one name.
    """
    if not isinstance(content, pd.DataFrame):
        return content
    if content.index.name is not None:  # the columns are classes
        content = content.rename_axis(index=dict(names).get(content.index.name))
        columns = [content.index.name, *content.columns]
    else:
        content = content.rename(columns=dict(names))
        columns = list(content.columns)
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise VoteError(f"two columns of an output would be called {twice[0]!r}: rename the column in the votes")
    return content


def write_files(contents: Mapping[Path, Content]) -> None:
    """Write tables as CSV and mappings as JSON, under other names first; nothing is renamed before all are complete.

    Raises:
        OSError: if a file cannot be written; then no target is changed and no draft is left.
    """
    drafts: dict[Path, Path] = {}
    try:
        for target, content in contents.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            drafts[target] = target.with_name(f".{os.getpid()}-{target.name}")
            if isinstance(content, pd.DataFrame):
                # repr's digits, so that what is read is what was written.
                content.to_csv(drafts[target], index=content.index.name is not None, encoding="utf-8", lineterminator="\n")
            else:
                drafts[target].write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for target, draft in drafts.items():
            draft.replace(target)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
