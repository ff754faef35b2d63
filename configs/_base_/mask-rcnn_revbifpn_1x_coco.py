# Mask R-CNN with RevBiFPN on COCO (MMDetection's layout, data/coco), 1x schedule: 12 epochs of SGD at batch size 16.
_base_ = [
    "models/mask-rcnn_revbifpn_hrfpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "default_runtime.py",
]
