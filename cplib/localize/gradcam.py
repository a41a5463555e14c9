"""GradCAM of an image-level model: the baseline of section 4.2 for localisation, through captum.

The paper states neither layer nor target. Here: the last convolutional block, and the gradient of the anomaly score
itself, the squared Mahalanobis distance of the embedding. So a map is high where activations raise the score. As
embeddings are scaled to length 1, it sums to 0 over an image: what is below 0 speaks for normal. The ReLU of GradCAM's
definition ties all such pixels, about half. Maps are kept without it, and cut off where they are read unless
`localize.cam_relu` is false.
"""

import warnings

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cplib.gde import GaussianDensity

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # captum asks for progress bars of notebooks, which need ipywidgets
    from captum.attr import LayerGradCam


def maps(net: nn.Module, images: Tensor, density: GaussianDensity, batch_size: int = 32) -> np.ndarray:
    """GradCAM of the score of a fitted density at the last convolutional block (Selvaraju et al. 2017, equations 1 and
    2), before the ReLU.

    Images are (n, 3, size, size) uint8, on the device of the net, which has a ResNet as `encoder` and is in evaluation
    mode. Maps are (n, size / 32, size / 32) float32 for the ImageNet stem, as they come."""
    mean, precision = (torch.tensor(a, device=images.device) for a in (density.mean, density.precision))

    def score(batch: Tensor) -> Tensor:
        z = nn.functional.normalize(net.embed(batch).double(), dim=1) - mean
        return ((z @ precision) * z).sum(1)

    cam = LayerGradCam(score, net.encoder.layer4[-1])
    batches = tqdm(images.split(batch_size), "GradCAM", disable=None, leave=False, delay=2)
    found = [cam.attribute(batch.float().div(255))[:, 0].detach().cpu() for batch in batches]
    return torch.cat(found).float().numpy()
