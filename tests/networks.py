"""Networks that tests of several rooms take."""

from __future__ import annotations

from dataclasses import replace

from revbifpn.models import VARIANTS

#: Every kind of layer that S0 has, and fewer of them: compilers, exports and processes take their time by the layer.
SMALL = replace(VARIANTS["s0"], num_ext_layers=0)
