"""Evaluate a checkpoint of a classifier or a detector on its test set: what ``revbifpn-test`` does, in a clone."""

from revbifpn.training.cli.test import main

if __name__ == "__main__":
    main()
