_base_ = "../_base_/mask-rcnn_revbifpn_1x_coco.py"
