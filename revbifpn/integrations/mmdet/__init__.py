"""RevBiFPN as a backbone for MMDetection and every other OpenMMLab package, and lean parts for MMDetection's detectors.

Name this module in a config, and ``type='RevBiFPN'`` is there (it is registered at MMEngine's root registry)::

    custom_imports = dict(imports=["revbifpn.integrations.mmdet"])
    model = dict(backbone=dict(type="RevBiFPN", variant="s0"))

The backbone and ``type='Recomputed'`` need MMEngine alone, ``RevSiloNeck`` needs MMCV too. The lean parts (``LeanHRFPN``,
``LeanFPN``, ``LeanRPNHead``, ``LeanFCNMaskHead``) are there where MMDetection is installed.
"""

from importlib.util import find_spec

from revbifpn.integrations.mmdet.backbone import RevBiFPNBackbone
from revbifpn.integrations.mmdet.recomputed import recomputed_class

__all__ = ["RevBiFPNBackbone", "recomputed_class"]

if find_spec("mmcv") is not None:
    from revbifpn.integrations.mmdet.revsilo_neck import RevSiloNeck

    __all__ += ["RevSiloNeck"]

if find_spec("mmdet") is not None:
    from revbifpn.integrations.mmdet.fpn import LeanFPN
    from revbifpn.integrations.mmdet.hrfpn import LeanHRFPN
    from revbifpn.integrations.mmdet.mask_head import LeanFCNMaskHead
    from revbifpn.integrations.mmdet.rpn_head import LeanRPNHead

    __all__ += ["LeanFCNMaskHead", "LeanFPN", "LeanHRFPN", "LeanRPNHead"]
