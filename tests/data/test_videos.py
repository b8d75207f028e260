from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from tests.data.files import png
from vlm_grpo.data.videos import Clip, frame_count, open_video, qwen_frame_count, validate_video, video_ref


def write_video(path: Path, count: int = 8, fps: int = 4) -> str:
    """A real video file: frames of growing brightness, `fps` a second."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width = stream.height = 64
        for number in range(count):
            image = np.full((64, 64, 3), 25 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def brightness(clip: Clip) -> list[int]:
    return [round(frame.mean() / 25) for frame in clip.frames]


def test_a_file_gives_frames_at_two_a_second_evenly_spread(tmp_path: Path):
    """8 frames in 2 seconds: 4 are taken, the first and the last among them (0, 2.33, 4.67, 7)."""
    clip = open_video(video_ref(write_video(tmp_path / "a.mp4")))
    assert clip.frames.shape == (4, 64, 64, 3) and clip.frames.dtype == np.uint8
    assert brightness(clip) == [0, 2, 5, 7]
    assert clip.fps == 2.0


def test_rate_and_limit_of_a_reference_count(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4")
    assert open_video(video_ref({"video": path, "fps": 4})).frames.shape[0] == 8
    clip = open_video(video_ref({"video": path, "fps": 4, "max_frames": 2}))
    assert (brightness(clip), clip.fps) == ([0, 7], 1.0)
    assert video_ref(path).key != video_ref({"video": path, "fps": 4}).key


def test_bytes_frames_and_arrays_are_videos(tmp_path: Path):
    content = Path(write_video(tmp_path / "a.mp4")).read_bytes()
    assert len(open_video(video_ref(content)).frames) == 4
    assert len(open_video(video_ref({"bytes": content})).frames) == 4
    clip = open_video(video_ref([png("red"), png("lime"), png("blue")], fps=3))
    assert (clip.frames.shape, clip.fps) == ((3, 6, 8, 3), 3)
    assert clip.frames[1, 0, 0].tolist() == [0, 255, 0]
    clip = open_video(video_ref(np.zeros((100, 4, 4, 3)), max_frames=50))
    assert (len(clip.frames), clip.fps) == (50, 1.0)  # half of the frames of 2 a second


@pytest.mark.parametrize(
    ("total", "rate", "plain", "qwen"),
    [(8, 4.0, 4, 4), (300, 30.0, 20, 20), (45, 30.0, 3, 4), (30000, 30.0, 64, 64), (3, 30.0, 1, 2), (1, 30.0, 1, 1)],
)
def test_frame_counts(total: int, rate: float, plain: int, qwen: int):
    """At 2 a second, at most 64; Qwen's are even and at least 4 where there are as many."""
    assert frame_count(total, rate, 2.0, 64) == plain
    assert qwen_frame_count(total, rate, 2.0, 64) == qwen


def test_bad_videos_are_named_with_their_line(tmp_path: Path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"a\.jsonl:7: cannot decode .*text\.mp4"):
        open_video(video_ref(str(tmp_path / "text.mp4"), "a.jsonl:7"))
    with pytest.raises(ValueError, match=r"a\.jsonl:7: cannot decode .*none\.mp4: no such file"):
        open_video(video_ref(str(tmp_path / "none.mp4"), "a.jsonl:7"))
    with pytest.raises(ValueError, match=r"a\.jsonl:7: the frames of a video must have the same size"):
        open_video(video_ref([png(size=(8, 6)), png(size=(6, 8))], "a.jsonl:7"))
    for value in (None, 7, [], {}, {"fps": 2}, io.BytesIO()):
        with pytest.raises(ValueError, match=r"a\.jsonl:7: a video must be a path, URL, bytes"):
            video_ref(value, "a.jsonl:7")


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path):
    """Broken bytes in the decoder's words, not by the file's own path; a file with sound alone by what it lacks."""
    import av

    (tmp_path / "broken.mp4").write_bytes(b"not a video" * 100)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    errors = [
        validate_video(video_ref(str(tmp_path / f"{name}.mp4"), "x:1"), decode=True) for name in ("broken", "sound")
    ]
    assert errors == ["Invalid data found when processing input", "there is no video stream in it"]
    frames = video_ref([png("red"), png("red", (4, 4))], "x:1")
    with pytest.raises(ValueError, match="x:1: the frames of a video must have the same size"):
        open_video(frames)
