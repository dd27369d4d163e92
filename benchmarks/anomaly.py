"""Which images are not of this kind: a flow of MNIST digits scores Caltech silhouettes and Frey faces.

Images are made 28 x 28 (faces are stretched, silhouettes have 255 for 1), then averaged over blocks of 2 x 2 and
rounded to 256 levels. A RealNVP learns the logit of the dequantised pixels of the first training digits. The scores
are the negative log likelihood, and typicality: its distance from the mean on digits held out. Test digits stand
against images of other kinds, and against themselves blurred over 5 x 5 pixels. The border of digits is nearly always
black, and tells most other images apart: --crop 4 leaves it out.

    python benchmarks/anomaly.py --data ../shared/data [--rows 20000] [--epochs 20] [--crop 4]
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from timing import table
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from pyroflows import FlowDensity, flows
from pyroflows.vae import Dequantiser, bits_per_dim


def pooled(images: NDArray, crop: int) -> Tensor:
    """Grey levels ``(rows, pixels)`` of images with values from 0 to 255."""
    pixels = torch.tensor(images, dtype=torch.float32)[:, None]
    pixels = interpolate(pixels, size=(28, 28), mode="bilinear")[..., crop : 28 - crop, crop : 28 - crop]
    return avg_pool2d(pixels, 2).round().flatten(1)


def outliers(folder: Path, digits: NDArray) -> dict[str, NDArray]:
    """What does not belong, by name."""
    packed = np.load(folder / "caltech101_silhouettes_28.npz")["test_data_bits"]
    silhouettes = 255 * np.unpackbits(packed, axis=1).reshape(-1, 28, 28)
    faces = np.load(folder / "freyfaces.npz")["images"]
    return {
        "Caltech silhouettes": 255 - silhouettes,
        "Caltech silhouettes, inverted": silhouettes,
        "Frey faces": faces,
        "test digits, blurred": avg_pool2d(torch.tensor(digits).float(), 5, 1, padding=2).numpy(),
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder with images/mnist.npz and the others")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--crop", type=int, default=0, help="pixels to cut off each side")
    options = parser.parse_args()
    if options.data is None:
        print("needs images: --data ../shared/data")
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder, dequantise = options.data / "images", Dequantiser(256)
    digits, start = np.load(folder / "mnist.npz"), time.perf_counter()
    train = dequantise(pooled(digits["train_images"][: options.rows], options.crop))[0]
    flow = partial(flows.realnvp, hidden_dims=(128, 128))
    density = FlowDensity(flow, epochs=options.epochs, batch_size=256, lr=1e-3)
    density.fit(train)
    print(f"trained for {len(density.log_.train)} epochs, {time.perf_counter() - start:.0f} s")

    def nats(images: NDArray) -> NDArray:
        y, ladj = dequantise(pooled(images, options.crop))
        return -density.score_samples(y) - ladj.numpy()

    def bits(nats: NDArray) -> float:
        return bits_per_dim(-torch.tensor(np.median(nats)), train.shape[1]).item()

    held, test = nats(digits["train_images"][-5000:]), nats(digits["test_images"])
    rows = [["MNIST test digits", bits(test), "", ""]]
    for name, images in outliers(folder, digits["test_images"]).items():
        found = nats(images)
        label, score = np.repeat([0, 1], [len(test), len(found)]), np.concatenate([test, found])
        areas = [f"{roc_auc_score(label, s):.3f}" for s in (score, np.abs(score - held.mean()))]
        rows.append([name, bits(found), *areas])
    print(table(["images", "median bits a pixel", "AUROC of the likelihood", "AUROC of typicality"], rows))


if __name__ == "__main__":
    main()
