"""Puts measured figures into the documentation, so that none is typed by hand.

    python -m benchmarks.readme            # write README.md and docs/*.md anew
    python -m benchmarks.readme --check    # change nothing; exit status 1 if a page differs or figures are missing
    python -m benchmarks.readme --list     # every block of figures, its file and the command that measures it

A page names a block of figures between two markers::

    <!-- figures: engine_cost -->
    <!-- /figures -->

and this puts there what the JSON file of that block says, with a line of the command, the processor, the versions and the
date. Where the file, or the part of it, is not there or is of an older version, it puts a line that says so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import (
    clips,
    cost_tables,
    engine_cost,
    exact_reversal,
    fashion_mnist,
    growth,
    inference,
    macs,
    memory_prediction,
    votes_tables,
)
from benchmarks import model_zoo_files as zoo
from benchmarks import paper_figures as paper
from benchmarks import pruning as one_shot
from benchmarks import sparse_training as sparse
from benchmarks.common import describe
from revbifpn.memory.rows import ComparisonRow

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks"
PAGES = ("README.md", "CONTRIBUTING.md", "model_zoo/README.md", "docs/*.md")

_BLOCK = re.compile(r"^<!-- figures: ([\w-]+) -->\n(.*?)^<!-- /figures -->", re.DOTALL | re.MULTILINE)
_MARKER = re.compile(r"^<!-- /?figures.*?-->", re.MULTILINE)


class MarkerError(ValueError):
    """A page whose markers are wrong."""


@dataclass(frozen=True)
class Source:
    """A part of a JSON file that a benchmark writes.

    Attributes:
        file: its name in ``benchmarks/``.
        keys: of the part, from the outside in; empty for all of it.
        command: what writes it.
        environments: where the part says its environments, each as the keys that lead to one, from the part.
    """

    file: str
    keys: tuple[str, ...]
    command: str
    environments: tuple[tuple[str, ...], ...] = (("environment",),)

    @property
    def name(self) -> str:
        """The file, and the part of it that is meant."""
        return f"benchmarks/{self.file}" + (f" ({'.'.join(self.keys)})" if self.keys else "")

    def read(self, folder: Path) -> Any:
        """The part; None if there is none."""
        path = folder / self.file
        if not path.is_file():
            return None
        return _at(json.loads(path.read_text()), self.keys)

    def provenance(self, content: Any) -> list[str]:
        """The environments in which the part was measured, in a line each."""
        found = [env for keys in self.environments if (env := _at(content, keys)) is not None]
        return list(dict.fromkeys(describe(env) for env in found))


@dataclass(frozen=True)
class Figures:
    """A block of figures.

    Attributes:
        sources: what it is made of.
        render: makes Markdown of the sources' contents.
    """

    sources: tuple[Source, ...]
    render: Callable[..., str]


def _at(content: Any, keys: Iterable[str]) -> Any:
    for key in keys:
        if not isinstance(content, Mapping) or key not in content:
            return None
        content = content[key]
    return content


def _cost(group: str, groups: str = "") -> Source:
    command = f"python -m benchmarks.training_cost --parts cost --groups {groups or group}"
    return Source("training_cost.json", ("cost", group), command, (("memory", "environment"), ("time", "environment")))


def _part(part: str) -> Source:
    return Source("training_cost.json", (part,), f"python -m benchmarks.training_cost --parts {part}")


def _writes(module: str, keys: tuple[str, ...] = (), arguments: str = "", option: str = "--json", **more: Any) -> Source:
    command = " ".join(filter(None, (f"python -m benchmarks.{module}", arguments, option, f"benchmarks/{module}.json")))
    return Source(f"{module}.json", keys, command, **more)


def _printed(figure: str) -> Source:
    picture = {"imagenet": "imagenet", "faster-rcnn": "coco"}.get(figure)
    arguments = f"{figure} --png docs/images/memory_{picture}.png" if picture else figure
    return _writes("paper_figures", (figure,), arguments, "--results")


def _clips(part: str) -> Source:
    return _writes("clips", (part,), f"--parts {part} --pictures docs/images")


def _equal_accuracy(s2: Any, s3: Any, s6: Any, detectors: Any) -> str:
    return cost_tables.equal_accuracy_table((s2, s3, s6), detectors["rows"])


def _paper_table(figure: str) -> Callable[[Any], str]:
    def render(content: Any) -> str:
        rows = [ComparisonRow(**row) for row in content["rows"]]
        _, head, lines = paper.paper_table(paper.FIGURES[figure], rows)
        return cost_tables.table(head, lines)

    return render


def _paper_ratio(content: Any) -> str:
    rows = [ComparisonRow(**row) for row in content["rows"]]
    return paper.headline_ratio([*rows, *paper.printed_rows(paper.FIGURES["imagenet"])]) or ""


def _growth(content: Any) -> str:
    return "\n\n".join(growth.as_table(sweep) for sweep in content["sweeps"])


def _demo(content: Any) -> str:
    reached = "a box AP50 of {box_ap50:.3f} and a mask AP50 of {mask_ap50:.3f}, in {minutes:.0f} minutes for everything"
    return f"On the {content['images']} validation images `make demo` reached {reached.format(**content)}."


_EXACT = "--plot docs/images/exact_reversal.png"
_VOTES = _writes("votes", ("sets",), "--votes FOLDER --parts sets")
_SPARSE = {"spdf": " --images 4000", "wide": " --images 3000", "memory": " --pictures docs/images"}
_FASHION = Source("fashion_mnist.json", (), "python -m benchmarks.fashion_mnist", (("runs", "reversible", "environment"),))

FIGURES = {
    "equal_accuracy": Figures(
        (*(_cost(group, "s2 s3 s6") for group in ("s2", "s3", "s6")), _printed("faster-rcnn")), _equal_accuracy
    ),
    "beside_checkpointed_b0": Figures((_cost("s0"),), cost_tables.beside_checkpointed_b0),
    "modes": Figures((_cost("s0"),), cost_tables.modes_table),
    **{f"cost_{group}": Figures((_cost(group),), cost_tables.group_table) for group in ("s0", "s2", "s3", "s6")},
    "growth": Figures((_part("growth"),), _growth),
    "inference": Figures((_part("inference"),), lambda content: inference.as_table(content["rows"])),
    "engine_cost": Figures((_writes("engine_cost"),), engine_cost.as_table),
    "exact_error": Figures(
        (_writes("exact_reversal", ("growth",), _EXACT),), lambda content: exact_reversal.growth_table(content["rows"])
    ),
    "exact_cost": Figures(
        (_writes("exact_reversal", ("cost",), _EXACT),), lambda content: exact_reversal.cost_table(content["rows"])
    ),
    "exact_forward": Figures(
        (_writes("exact_reversal", ("forward",), _EXACT),), lambda content: exact_reversal.forward_table(content["rows"])
    ),
    "fashion_mnist": Figures((_FASHION,), lambda content: fashion_mnist.as_table(content["runs"])),
    "fashion_mnist_agreement": Figures((_FASHION,), lambda content: fashion_mnist.agreement_text(content["agreement"])),
    "memory_prediction": Figures((_writes("memory_prediction"),), lambda content: memory_prediction.as_table(content["rows"])),
    **{f"paper_{figure.replace('-', '_')}": Figures((_printed(figure),), _paper_table(figure)) for figure in paper.FIGURES},
    "paper_ratio": Figures((_printed("imagenet"),), _paper_ratio),
    **{
        f"detection_{part}": Figures((_writes("detection", (part,), f"--parts {part}"),), cost_tables.detector_table)
        for part in ("lean", "frozen")
    },
    "macs": Figures((_writes("macs", environments=()),), macs.as_table),
    "zoo_classifiers": Figures((_writes("model_zoo"),), zoo.classifier_table),
    "zoo_detectors": Figures((_writes("model_zoo"),), zoo.detector_table),
    "votes_sets": Figures((_VOTES,), lambda content: votes_tables.sets_table(content["sets"])),
    "votes_goal": Figures((_VOTES,), lambda content: votes_tables.goal_text(content["sets"])),
    "votes_time": Figures(
        (_writes("votes", ("time",), "--parts time"),), lambda content: votes_tables.time_table(content["rows"])
    ),
    "votes_end_to_end": Figures((_writes("votes_end_to_end", ("digits",)),), votes_tables.end_to_end_text),
    "votes_clips": Figures((_writes("votes_clips"),), votes_tables.clips_text),
    "frozen_stages": Figures((_writes("detection", ("frozen",), "--parts frozen"),), zoo.frozen_table),
    "pruning_accuracy": Figures((_writes("pruning", ("accuracy",), "--parts accuracy"),), one_shot.accuracy_table),
    "pruning_training": Figures((_writes("pruning", ("accuracy",), "--parts accuracy"),), one_shot.training_text),
    "pruning_csr": Figures((_writes("pruning", ("csr",), "--parts csr"),), one_shot.csr_table),
    **{
        f"sparse_{part}": Figures((_writes("sparse_training", (part,), f"--parts {part}{_SPARSE.get(part, '')}"),), render)
        for part, render in sparse.TABLES.items()
    },
    "clips_training": Figures((_clips("training"),), clips.training_table),
    "clips_memory": Figures((_clips("memory"),), clips.memory_table),
    "demo": Figures((Source("demo.json", (), "python tools/demo.py --json benchmarks/demo.json"),), _demo),
}


def block(name: str, folder: Path = RESULTS) -> tuple[str, list[Source]]:
    """What stands between the markers of a block, and which of its sources are missing.

    Args:
        name: one of :data:`FIGURES`.
        folder: with the JSON files.
    """
    figures = FIGURES[name]
    contents = [source.read(folder) for source in figures.sources]
    missing = [source for source, content in zip(figures.sources, contents, strict=True) if content is None]
    if missing:
        source = missing[0]
        return f"*Not measured yet: {source.name} is not there. `{source.command}` writes it.*\n", missing
    commands = dict.fromkeys(f"`{source.command}`" for source in figures.sources)
    try:
        lines = [
            line for source, content in zip(figures.sources, contents, strict=True) for line in source.provenance(content)
        ]
        text = figures.render(*contents)
    except KeyError as error:
        names = ", ".join(dict.fromkeys(f"benchmarks/{source.file}" for source in figures.sources))
        return f"*Not measured anew: {names} has no {error}. {', '.join(commands)} writes it.*\n", list(figures.sources)
    return f"{text}\n\n*{'; '.join((', '.join(commands), *dict.fromkeys(lines)))}*\n", []


def render(page: str, folder: Path = RESULTS) -> tuple[str, list[Source]]:
    """A page with all its blocks written anew, and the sources that are missing.

    Raises:
        MarkerError: if a block has no end, or a name that is not in :data:`FIGURES`.
    """
    missing: list[Source] = []

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name not in FIGURES:
            raise MarkerError(f"no figures are called {name!r}: choose from {', '.join(FIGURES)}")
        text, without = block(name, folder)
        missing.extend(without)
        return f"<!-- figures: {name} -->\n{text}<!-- /figures -->"

    if stray := _MARKER.search(_BLOCK.sub("", page)):
        raise MarkerError(f"{stray[0]}: a block of figures begins with a line '<!-- figures: NAME -->' and ends with another")
    return _BLOCK.sub(replace, page), missing


def pages() -> list[Path]:
    """The pages that may have blocks."""
    return sorted(path for pattern in PAGES for path in ROOT.glob(pattern))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if a page differs")
    parser.add_argument("--list", action="store_true", help="name every block, its file and the command that measures it")
    args = parser.parse_args()
    if args.list:
        for name, figures in FIGURES.items():
            print(f"{name}: " + "; ".join(f"{source.name} by {source.command}" for source in figures.sources))
        return
    failed = False
    missing: dict[str, str] = {}
    for path in pages():
        before = path.read_text()
        try:
            after, without = render(before)
        except MarkerError as error:
            sys.exit(f"readme: {path.relative_to(ROOT)}: {error}")
        missing |= {source.name: source.command for source in without}
        if after != before:
            failed = True
            print(f"{path.relative_to(ROOT)}: {'differs' if args.check else 'written'}")
            if not args.check:
                path.write_text(after)
    for name, command in missing.items():
        print(f"missing: {name}; {command} writes it")
    if args.check and (failed or missing):
        sys.exit(1)


if __name__ == "__main__":
    main()
