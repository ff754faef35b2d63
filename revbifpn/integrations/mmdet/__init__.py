"""RevBiFPN as a backbone for MMDetection and every other OpenMMLab package.

Name this module in a config, and ``type='RevBiFPN'`` is there (it is registered at MMEngine's root registry)::

    custom_imports = dict(imports=["revbifpn.integrations.mmdet"])
    model = dict(backbone=dict(type="RevBiFPN", variant="s0"))
"""

from revbifpn.integrations.mmdet.backbone import RevBiFPNBackbone

__all__ = ["RevBiFPNBackbone"]
