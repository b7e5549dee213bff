"""The same FCN-8s in PyTorch, eager, for comparison. The only module that needs torch: pip install torch==2.13.0

Filling, padding and the transposed convolutions are those of train.fcn: the same weights give the same logits.
"""
import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import vgg
from benchmarks.measure import find_cores
from datasets.classes import IGNORE_LABEL
from utils import bilinear_upsample_weights


class FCN8s(nn.Module):
    """FCN-8s on VGG16; fc_channels is the width of fc6 and fc7."""

    def __init__(self, fc_channels=4096, classes=21):
        super().__init__()
        self.blocks, depth = nn.ModuleList(), 3
        for _, repeats, width in vgg.BLOCKS:
            block = nn.Sequential()
            for _ in range(repeats):
                block.extend([nn.Conv2d(depth, width, 3, padding=1), nn.ReLU()])
                depth = width
            self.blocks.append(block.append(nn.MaxPool2d(2)))
        self.score_pool5 = nn.Sequential(
            nn.Conv2d(depth, fc_channels, 7, padding=3), nn.ReLU(), nn.Dropout(0.5),
            nn.Conv2d(fc_channels, fc_channels, 1), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(fc_channels, classes, 1))
        self.score_pool4, self.score_pool3 = nn.Conv2d(512, classes, 1), nn.Conv2d(256, classes, 1)
        for layer in (self.score_pool5[-1], self.score_pool4, self.score_pool3):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.upscores = nn.ModuleList(upsampling(factor, classes) for factor in (2, 2, 8))
        self.register_buffer('mean', torch.tensor(vgg.RGB_MEAN)[:, None, None], persistent=False)

    def forward(self, images):
        """Raw RGB 0..255, float32 [B, 3, H, W], to logits, float32 [B, C, H, W]."""
        height, width = images.shape[-2:]
        pooled = [functional.pad(images - self.mean, (0, -width % 32, 0, -height % 32))]
        for block in self.blocks:
            pooled.append(block(pooled[-1]))
        net = self.upscores[0](self.score_pool5(pooled[5])) + self.score_pool4(pooled[4])
        net = self.upscores[1](net) + self.score_pool3(pooled[3])
        return self.upscores[2](net)[:, :, :height, :width]


def upsampling(factor, classes):
    """Learned transposed convolution of stride `factor` that starts as bilinear interpolation."""
    layer = nn.ConvTranspose2d(classes, classes, 2 * factor, stride=factor, padding=factor // 2, bias=False)
    layer.weight.data = to_torch(bilinear_upsample_weights(factor, classes))
    return layer


def to_torch(kernel):
    """Kernel of TensorFlow, [H, W, in, out] (transposed convolution: [H, W, out, in]), with its last axes first."""
    return torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))


def segmentation_loss(logits, labels):
    """Loss of train.segmentation_loss: summed over each row, then the mean over rows and batch; 255 is in no sum."""
    total = functional.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction='sum')
    return total / (labels.shape[0] * labels.shape[1])


def training(turns, batch_size, crop_size, fc_channels, steps, fused=None):
    """Contender: training steps on one constant batch, with Adam(fused=FUSED); the first round has at most 2 steps."""
    torch.set_num_threads(len(find_cores()))
    rng = np.random.RandomState(0)
    images = torch.from_numpy(rng.randint(0, 256, (batch_size, 3, crop_size, crop_size)).astype(np.float32))
    labels = torch.from_numpy(rng.randint(0, 21, (batch_size, crop_size, crop_size)).astype(np.int64))
    network = FCN8s(fc_channels)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=fused)
    for number in itertools.chain([min(2, steps)], itertools.repeat(steps)):
        with turns.round(number * batch_size):
            for _ in range(number):
                optimizer.zero_grad()
                loss = segmentation_loss(network(images), labels)
                loss.backward()
                optimizer.step()
                loss.item()


def prediction(turns, height, width, fc_channels, images):
    """Contender: uint8 image [H, W, 3] in, float32 softmax [H, W, C] out, both NumPy; `images` a round."""
    torch.set_num_threads(len(find_cores()))
    image = np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8)
    network = FCN8s(fc_channels).eval()
    while True:
        with turns.round(images):
            for _ in range(images):
                predict(network, image)


def predict(network, image):
    """Softmax of one image, uint8 [H, W, 3] to float32 [H, W, C], NumPy."""
    with torch.inference_mode():
        inputs = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        return functional.softmax(network(inputs), dim=1)[0].permute(1, 2, 0).numpy()
