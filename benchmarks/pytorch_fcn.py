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
    """FCN-8s on VGG16, with train.fcn's names: `fc_channels` is the width of fc6 and fc7."""

    def __init__(self, fc_channels=4096, number_of_classes=21):
        super().__init__()
        channels = 3
        for block, repeats, width in vgg.BLOCKS:
            for repeat in range(1, repeats + 1):
                self.add_module(f'{block}_{repeat}', nn.Conv2d(channels, width, 3, padding=1))
                channels = width
        self.fc6 = nn.Conv2d(channels, fc_channels, 7, padding=3)
        self.fc7 = nn.Conv2d(fc_channels, fc_channels, 1)
        self.fc8 = nn.Conv2d(fc_channels, number_of_classes, 1)
        self.conv_pool4 = nn.Conv2d(512, number_of_classes, 1)
        self.conv_pool3 = nn.Conv2d(256, number_of_classes, 1)
        self.t_conv_x2_1 = upsampling(2, number_of_classes)
        self.t_conv_x2_2 = upsampling(2, number_of_classes)
        self.t_conv_x8 = upsampling(8, number_of_classes)
        self.dropout = nn.Dropout(0.5)
        for layer in (self.fc8, self.conv_pool4, self.conv_pool3):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer('mean', torch.tensor(vgg.RGB_MEAN)[:, None, None], persistent=False)

    def forward(self, images):
        """Raw RGB 0..255, float32 [B, 3, H, W], to logits, float32 [B, C, H, W]."""
        height, width = images.shape[-2:]
        net = functional.pad(images - self.mean, (0, -width % 32, 0, -height % 32))
        pooled = {}
        for block, repeats, _ in vgg.BLOCKS:
            for repeat in range(1, repeats + 1):
                net = functional.relu(self.get_submodule(f'{block}_{repeat}')(net))
            net = pooled[block] = functional.max_pool2d(net, 2)
        net = self.dropout(functional.relu(self.fc6(net)))
        net = self.dropout(functional.relu(self.fc7(net)))
        net = self.t_conv_x2_1(self.fc8(net)) + self.conv_pool4(pooled['conv4'])
        net = self.t_conv_x2_2(net) + self.conv_pool3(pooled['conv3'])
        return self.t_conv_x8(net)[:, :, :height, :width]


def upsampling(factor, channels):
    """Learned transposed convolution of stride `factor` that starts as bilinear interpolation."""
    layer = nn.ConvTranspose2d(channels, channels, 2 * factor, stride=factor, padding=factor // 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(to_torch(bilinear_upsample_weights(factor, channels)))
    return layer


def to_torch(kernel):
    """Kernel of TensorFlow, [H, W, in, out] (transposed convolution: [H, W, out, in]), with its last axes first."""
    return torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))


def segmentation_loss(logits, labels):
    """Loss of train.segmentation_loss: summed over each row, then the mean over rows and batch; 255 is in no sum."""
    total = functional.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction='sum')
    return total / (labels.shape[0] * labels.shape[1])


def training(turns, batch_size, crop_size, fc_channels, steps, fused=None):
    """Contender: `steps` training steps a round on one constant batch, with Adam(fused); the first round has at most 2.
    """
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
