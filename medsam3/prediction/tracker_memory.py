"""What a session of Sam3VideoModel may forget after a slice, so that its memory does not grow with the volume.

The model itself forgets nothing: about 5 MB for each object and slice at 1008 px.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any


def forget(session: Any, index: int, tracker: Any) -> None:
    """Drop what no later slice of a session that goes on in one direction reads.

    The tracker reads: the memory of the last `num_maskmem` slices and of the nearest `max_cond_frame_num` slices on
    which a track began or was confirmed; the object pointers of the last `max_object_pointers_in_encoder` slices, and
    of all those on which a track began or was confirmed (1 kB each).

    Args:
        session: a Sam3VideoInferenceSession.
        index: of the slice that is done.
        tracker: a Sam3TrackerVideoModel.
    """
    recent = max(tracker.num_maskmem, tracker.config.max_object_pointers_in_encoder)
    nearest = tracker.config.max_cond_frame_num
    for outputs in session.output_dict_per_obj.values():
        passed, begun = outputs["non_cond_frame_outputs"], outputs["cond_frame_outputs"]
        for frame in [frame for frame in passed if abs(frame - index) >= recent]:
            del passed[frame]
        for entry in (*passed.values(), *begun.values()):
            entry.pop("high_res_masks", None)
            entry.pop("pred_masks", None)
        far = sorted(begun, key=lambda frame: abs(frame - index))[nearest if nearest >= 0 else len(begun) :]
        for frame in far:
            if abs(frame - index) >= recent:
                begun[frame].pop("maskmem_features", None)
                begun[frame].pop("maskmem_pos_enc", None)
    for per_object in (session.mask_inputs_per_obj, session.frames_tracked_per_obj):
        for entries in per_object.values():
            entries.clear()
    session.obj_id_to_tracker_score_frame_wise = defaultdict(dict)
    session.suppressed_obj_ids = defaultdict(set)
    for frames in session.unmatched_frame_inds.values():
        del frames[:-1]
    session.overlap_pair_to_frame_inds = defaultdict(list)
