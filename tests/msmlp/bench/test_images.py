import numpy as np

from msmlp.bench.images import IMAGES_OF, pick_images, requests, thumbnails


def test_without_data_images_are_cut_from_a_photograph() -> None:
    images = pick_images(None, 5, 32)
    assert images.shape == (5, 32, 32, 3)
    assert len(np.unique(images.reshape(5, -1), axis=0)) == 5


def test_a_request_of_every_body_says_its_length() -> None:
    files = thumbnails(32)
    for body in IMAGES_OF:
        for request in requests("http://127.0.0.1:8000", body, files, 32):
            head, _, content = request.partition(b"\r\n\r\n")
            assert f"Content-Length: {len(content)}".encode() in head.split(b"\r\n")
