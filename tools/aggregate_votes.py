"""Aggregate the votes of several annotators into a label for each item, and class probabilities to train on.

python tools/aggregate_votes.py votes.csv --method dawid-skene --out labels.csv --soft soft.csv --workers workers.csv

VOTES is a CSV file with a header and a row for each vote: item, annotator, class. Files are written when all is computed,
all together; a file that exists is replaced with --overwrite only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from revbifpn.training.errors import one_line_errors

with one_line_errors("aggregate_votes"):
    from revbifpn.votes import METHODS, VoteError, aggregate, read_gold, read_votes
    from revbifpn.votes.table import DUPLICATES
    from revbifpn.votes.writing import check_targets, renamed, write_files


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("votes", type=Path, metavar="VOTES", help="CSV file of the votes")
    parser.add_argument("--method", default="dawid-skene", choices=METHODS, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="LABELS", help="CSV to write: an item's label a row")
    parser.add_argument("--soft", type=Path, help="CSV to write: an item's probability of each class a row")
    parser.add_argument("--workers", type=Path, help="CSV to write: each annotator's estimated reliability")
    parser.add_argument("--review", type=Path, help="CSV to write: the rows of LABELS, the items to vote on again first")
    parser.add_argument("--summary", type=Path, help="JSON to write: counts and agreement")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--task-column", default="task", metavar="NAME", help="column of the items (default: %(default)s)")
    parser.add_argument("--worker-column", default="worker", metavar="NAME", help="of the annotators (default: %(default)s)")
    parser.add_argument("--label-column", default="label", metavar="NAME", help="of the classes (default: %(default)s)")
    parser.add_argument(
        "--classes", nargs="+", metavar="CLASS", help="all classes in their order, also those that nobody votes for"
    )
    parser.add_argument(
        "--ordered", action="store_true", help="the classes are levels, lowest first: labels are medians, errors have a size"
    )
    parser.add_argument(
        "--duplicates",
        default="stop",
        choices=DUPLICATES,
        help="where an annotator voted on an item more than once: stop, or keep the first or the last (default: %(default)s)",
    )
    parser.add_argument(
        "--gold", type=Path, metavar="CSV", help="known labels of some items: the columns of items and classes"
    )
    parser.add_argument("--seed", type=int, default=0, help="of methods that draw random numbers (default: %(default)s)")
    parser.add_argument("--hidden", type=int, metavar="H", help="hidden units of a machine (k-rbm)")
    parser.add_argument("--hard", action="store_true", help="machines do not share an item (k-rbm)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    settings = {} if args.hidden is None else {"n_hidden": args.hidden}
    if args.hard:
        settings["soft"] = False
    if settings and args.method != "k-rbm":
        raise VoteError("--hidden and --hard are for --method k-rbm")
    paths = {
        name: path for name in ("out", "soft", "workers", "review", "summary") if (path := getattr(args, name)) is not None
    }
    check_targets(list(paths.values()), [path for path in (args.votes, args.gold) if path is not None], args.overwrite)

    columns = {"task": args.task_column, "worker": args.worker_column, "label": args.label_column}
    table = read_votes(args.votes, **columns, classes=args.classes, duplicates=args.duplicates)
    gold = None if args.gold is None else read_gold(args.gold, args.task_column, args.label_column)
    options = dict(ordered=args.ordered, seed=args.seed, gold=gold, settings=settings)
    result = aggregate(table, args.method, progress=sys.stderr.isatty(), **options)
    make = {
        "out": result.label_table,
        "soft": result.soft_label_table,
        "workers": result.worker_table,
        "review": result.review_table,
        "summary": result.summary,
    }
    write_files({path: renamed(make[name](), columns) for name, path in paths.items()})
    print(result)
    print("written: " + ", ".join(map(str, paths.values())))


if __name__ == "__main__":
    with one_line_errors("aggregate_votes", OSError):
        main()
