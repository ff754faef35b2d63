"""The weights that the authors of RevBiFPN published (ImageNet-1k classifiers): where they are, and which files they are."""

from __future__ import annotations

from dataclasses import dataclass

_ADDRESS = "https://cerebras-public.s3.us-west-2.amazonaws.com/revbifpn"


@dataclass(frozen=True)
class PublishedWeights:
    """One published file.

    Attributes:
        url: its address.
        sha256: of the whole file.
        top1: ImageNet accuracy in percent, as published; not reproduced here.
    """

    url: str
    sha256: str
    top1: float


PUBLISHED = {
    name: PublishedWeights(f"{_ADDRESS}/revbifpn_{name}.pth.tar", sha256, top1)
    for name, top1, sha256 in (
        ("s0", 72.8, "a9ee012a2670003ea18deca1afaed7c1323ffaafc83b0a30874d262bf2403cfa"),
        ("s1", 75.9, "584b0c3ea677ac5eff6c0f54b4b683973e7533bfde334155cd770aef041673c4"),
        ("s2", 79.0, "62ff9387b498550d31e248742a002be22cb29e800cd387ec9c93b6da7418dcc8"),
        ("s3", 81.1, "1695576b09ee9fc584df616abaf0762188122468825cc92b5abfeec63b609d25"),
        ("s4", 83.0, "61d7b65524000bb147aac26ad559906a2380e55a499d9d420063cc2b9e2ef42a"),
        ("s5", 83.7, "d7713a25c7f62bf4b9ebaa2693a7b6896e7965c6647cbd1d98eddeae8b74cdc3"),
        ("s6", 84.2, "31f355d5fb54610ad9051d08d0ec10bb0d33f40c0936352cb863b9f9a3d4fa09"),
    )
}


def published_at(address: str) -> PublishedWeights | None:
    """Return the published file of an address; None where it is none."""
    return next((weights for weights in PUBLISHED.values() if weights.url == address), None)


def published_as(name: str) -> PublishedWeights | None:
    """Return the published file of a name, such as ``"revbifpn_s0.pth.tar"``; None where there is none."""
    return next((weights for weights in PUBLISHED.values() if weights.url.endswith(f"/{name}")), None)
