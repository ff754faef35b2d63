"""Train a classifier or a detector from a config: what ``revbifpn-train`` does, in a clone."""

from revbifpn.training.cli.train import main

if __name__ == "__main__":
    main()
