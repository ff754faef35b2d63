"""Config files: finding them by name, and saying in which file and line a setting stands that is wrong."""

from __future__ import annotations

import ast
import difflib
import inspect
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import FUNCTIONS, Registry
from mmengine.runner import Runner

import revbifpn
from revbifpn.training.checks import LOADERS
from revbifpn.training.errors import ConfigError

# What MMEngine's Runner reads of a config; the rest are variables that the file itself uses.
SETTINGS = {
    *inspect.signature(Runner.__init__).parameters,
    "find_unused_parameters",
    "model_wrapper_cfg",
    "runner_type",
    "sparsity",
    "sync_bn",
} - {"self", "cfg"}
CONFIGS = Path(revbifpn.__file__).parent / ".mim" / "configs"  # where OpenMMLab's packages have theirs


def find_config(path: Path) -> Path:
    """Find a config file, or else the one of that name in this package, such as ``imagenet/revbifpn-s0_8xb128_in1k.py``.

    Raises:
        FileNotFoundError: if there is neither, naming those with a similar name.
    """
    if path.is_file():
        return path
    name = path.as_posix().removeprefix("configs/")
    if not path.is_absolute() and (CONFIGS / name).is_file():
        return CONFIGS / name
    own = [file.relative_to(CONFIGS) for file in sorted(CONFIGS.rglob("*.py")) if "_base_" not in file.parts]
    by_stem = {file.stem: file.as_posix() for file in own}
    similar = [by_stem[stem] for stem in difflib.get_close_matches(path.stem, by_stem, n=3)]
    hint = f"similar ones of the package: {', '.join(similar)}" if similar else f"the package's own are in {CONFIGS}"
    raise FileNotFoundError(f"config not found: {path}; {hint}")


@dataclass(frozen=True)
class Source:
    """A Python config file."""

    path: Path
    tree: ast.Module

    def find(self, key: str, value: object = None) -> int | None:
        """Return the last line that sets a dotted key, such as ``model.backbone.type`` (to ``value``, if that is given).

        A dict that the file keeps in a variable of its own is found as well: where it goes is taken to be right.
        """
        *outer, last = key.split(".")
        wanted = [*(name for name in outer if not name.isdigit()), last]  # places in a list have no name in the file
        lines = []
        for names, content in _settings(self.tree):
            variable, *inner = names
            fits = bool(inner) and wanted[-len(inner) :] == inner and (variable == wanted[0] or variable not in SETTINGS)
            if (fits or names == wanted) and (value is None or _is_constant(content, value)):
                lines.append(content.lineno)
        return max(lines, default=None)

    def find_value(self, value: object) -> int | None:
        """Return the last line that has a constant, wherever it is used."""
        return max((node.lineno for node in ast.walk(self.tree) if _is_constant(node, value)), default=None)


def _is_constant(node: ast.AST, value: object) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and node.value == value


def _settings(node: ast.AST, outer: tuple[str, ...] = ()) -> Iterator[tuple[list[str], ast.expr]]:
    """What a syntax tree sets by ``key = value``, ``key=value`` in a call or ``{"key": value}``, with the names around it."""
    for child in ast.iter_child_nodes(node):
        found: list[tuple[str, ast.expr]] = []
        if isinstance(child, ast.keyword) and child.arg is not None:
            found = [(child.arg, child.value)]
        elif isinstance(child, ast.Assign):
            found = [(target.id, child.value) for target in child.targets if isinstance(target, ast.Name)]
        elif isinstance(child, ast.Dict):
            keys = zip(child.keys, child.values, strict=True)
            found = [(str(key.value), value) for key, value in keys if isinstance(key, ast.Constant)]
        for name, value in found:
            yield [*outer, name], value
            yield from _settings(ast.Expression(value), (*outer, name))
        if not found:
            yield from _settings(child, outer)


def read_sources(path: Path, within: tuple[Path, ...] = ()) -> list[Source]:
    """Return a Python config and the local files that it is based on, each after those that override it; others have none.

    Raises:
        ConfigError: naming file and line of a syntax error, or of a ``_base_`` that does not exist, or leads back to one of
            the files ``within`` which it was named.
    """
    if path.suffix != ".py":
        return []
    try:
        source = Source(path, ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno}: syntax error: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: it is no text in UTF-8: {error.reason} at byte {error.start}") from error
    sources = [source]
    for base, line in _bases(source):
        if not base.is_file():
            raise ConfigError(f"{path}:{line}: _base_ names a file that does not exist: {base}")
        if base.resolve() in (path.resolve(), *within):
            raise ConfigError(f"{path}:{line}: _base_ leads in a circle: {base}")
        sources += read_sources(base, (path.resolve(), *within))
    return sources


def _bases(source: Source) -> list[tuple[Path, int]]:
    """Return the files that ``_base_`` names, except those of other packages, with the lines."""
    for names, value in _settings(source.tree):
        if names == ["_base_"]:
            elements = value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value]
            strings = [n for n in elements if isinstance(n, ast.Constant) and isinstance(n.value, str) and "::" not in n.value]
            return [(Path(os.path.normpath(source.path.parent / str(n.value))), n.lineno) for n in strings]
    return []


def read_config(path: Path) -> Config:
    """Read a config by MMEngine's ``Config.fromfile``, with errors that say file, line and what is wrong.

    Raises:
        ConfigError: for whatever goes wrong inside the files.
    """
    sources = read_sources(path)
    try:
        return Config.fromfile(path)
    except (Exception, SystemExit) as error:  # a config is a program: anything may come
        files = {source.path.resolve(): source.path for source in sources}
        lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
        inside = [f"{files[Path(name).resolve()]}:{line}" for name, line in lines if Path(name).resolve() in files]
        raise ConfigError(f"{inside[-1] if inside else path}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Return what an error says, on one line."""
    if isinstance(error, ImportError):
        while isinstance(cause := error.__cause__ or error.__context__, ImportError):  # MMEngine's hide what failed
            error = cause
        if "mmdet" in str(error):
            return f"{error}: pip install 'revbifpn[mmdet]', and compile mmcv's operators as tools/setup.sh does"
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def named_build_errors(cfg: Config) -> Iterator[None]:
    """Say of what MMEngine cannot make from a config where it stands.

    Raises:
        ConfigError: for a ``type`` that nothing is registered for, arguments that a class does not take, and values that it
            refuses. Errors that have nothing to do with making objects from a config pass as they are.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        functions = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
        if isinstance(error, ConfigError) or not functions & {"build_from_cfg", "build_optim_wrapper", "build_dataloader"}:
            raise
        if (message := _explain(cfg, error)) is None:
            raise
        raise ConfigError(message) from error


_UNKNOWN_TYPE = re.compile(r"(?P<name>\S+) is not in the (?P<scope>[^:]*)::(?P<registry>.+?) registry\.")
_UNKNOWN_ARGUMENT = re.compile(r"(?P<function>[\w.<>]+)\(\) got an unexpected keyword argument '(?P<name>\w+)'")
_UNKNOWN_MODEL = re.compile(r"Unknown model \((?P<name>.*)\)")  # timm's


def _explain(cfg: Config, error: Exception) -> str | None:
    """Return what is wrong with a config by an error in making something from it; None if it is not the config's fault."""
    text = str(error.args[0]) if error.args else ""
    if isinstance(error, KeyError):
        match = _UNKNOWN_TYPE.match(text)
        return None if match is None else _unknown_type(cfg, **match.groupdict())
    if isinstance(error, TypeError):
        if match := _UNKNOWN_ARGUMENT.search(text):
            owner, name = match["function"].removesuffix(".__init__"), match["name"]
            keys = list(_keys(cfg, name, owner=owner)) or list(_keys(cfg, name)) or [name]
            return f"{_place(cfg, keys)}: {owner} takes no such argument"
        for name in (loader.get("collate_fn", {}).get("type") for loader in map(cfg.get, LOADERS) if loader):
            if isinstance(name, str) and FUNCTIONS.get(name) is None:  # MMEngine goes on with None for it
                return _unknown_type(cfg, name, "mmengine", "function")
        return f"{cfg.filename}: {text}" if "required" in text or "must be" in text else None
    if isinstance(error, RuntimeError):
        if match := _UNKNOWN_MODEL.fullmatch(text):
            return f"{_place(cfg, ['model.name'], match['name'])}: timm knows no model {match['name']!r}"
        return None
    return f"{cfg.filename}: {text}" if text else None


def _unknown_type(cfg: Config, name: str, scope: str, registry: str) -> str:
    similar = difflib.get_close_matches(name, _registered(registry, scope), n=1)
    hint = f"did you mean {similar[0]!r}?" if similar else "a class of your own has to be imported by custom_imports"
    place = _place(cfg, list(_keys(cfg, "type", value=name)) or ["type"], name)
    return f"{place}: no {registry} is registered as {name!r}; {hint}"


def _registered(name: str, scope: str) -> list[str]:
    roots = [root for root in vars(mmengine.registry).values() if isinstance(root, Registry) and root.name == name]
    children = [root.children[scope] for root in roots if scope in root.children]
    return [key for registry in (*roots, *children) for key in registry.module_dict]


def _place(cfg: Config, keys: list[str], value: object = None) -> str:
    """File and line of the first of some dotted keys that stands in a file, and the key."""
    sources = read_sources(Path(cfg.filename)) if cfg.filename else []
    for key in keys:
        for source in sources:
            if (line := source.find(key, value)) is not None:
                return f"{source.path}:{line}: {key}"
    for source in sources if value is not None else ():
        if (line := source.find_value(value)) is not None:
            return f"{source.path}:{line}: {keys[0]}"
    return f"{cfg.filename}, --cfg-options or _base_ of another package: {keys[0]}"


def _keys(node: Any, name: str, owner: str | None = None, value: object = None, path: str = "") -> Iterator[str]:
    """Dotted keys that end in ``name``: in dicts of one type only, or with one value only, if that is given."""
    if isinstance(node, (dict, Config)):
        items = list(node.items())
        if name in node and owner in (None, node.get("type")) and value in (None, node[name]):
            yield f"{path}{name}"
    elif isinstance(node, (list, tuple)):
        items = [(str(index), child) for index, child in enumerate(node)]
    else:
        return
    for key, child in items:
        yield from _keys(child, name, owner, value, f"{path}{key}.")
